//! VirtualMachine and VirtualMachineInstance (`kubevirt.io/v1`, and `v1alpha3`, whose fields are the
//! same).

use super::data_volume::DataVolumeTemplate;
use super::domain::Domain;
use super::meta::ObjectMeta;
use super::network::Network;
use super::volume::Volume;
use crate::read::{Accepted, Silent, object, words};

object! {
    /// A virtual machine: what it is made of, and when it runs.
    VirtualMachine {
        /// `kubevirt.io/v1`.
        "apiVersion" api_version: String,
        /// `VirtualMachine`.
        "kind" kind: String,
        /// Its name and labels.
        "metadata" metadata: ObjectMeta,
        /// What is wanted.
        "spec" spec: VirtualMachineSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// What is wanted of a virtual machine.
    VirtualMachineSpec {
        /// Deprecated: `true` is the run strategy Always, `false` is Halted.
        "running" running: Option<bool>,
        /// When the machine runs, and what follows its end.
        "runStrategy" run_strategy: Option<RunStrategyWord>,
        /// A size to take, instead of `domain.cpu` and `domain.memory`.
        "instancetype" instancetype: Option<InstancetypeMatcher>,
        /// What is filled in where the machine says nothing.
        "preference" preference: Option<PreferenceMatcher>,
        /// The machine.
        "template" template: InstanceTemplate,
        /// Volumes that are imported for this machine before it starts, and belong to it.
        "dataVolumeTemplates" data_volume_templates: Vec<DataVolumeTemplate>,
        /// How volumes that change are replaced in a running machine.
        "updateVolumesStrategy" update_volumes_strategy: Option<Accepted>,
    }

    /// An instancetype by its name.
    InstancetypeMatcher {
        /// The object's name.
        "name" name: Option<String>,
        /// VirtualMachineInstancetype or VirtualMachineClusterInstancetype, which it is if absent.
        "kind" kind: Option<String>,
        /// A revision that a cluster keeps.
        "revisionName" revision_name: Option<Accepted>,
        /// The volume whose labels name the instancetype.
        "inferFromVolume" infer_from_volume: Option<String>,
        /// What to do where that volume has no such label: Reject or Ignore.
        "inferFromVolumeFailurePolicy" infer_from_volume_failure_policy: Option<Accepted>,
    }

    /// A preference by its name.
    PreferenceMatcher {
        /// The object's name.
        "name" name: Option<String>,
        /// VirtualMachinePreference or VirtualMachineClusterPreference, which it is if absent.
        "kind" kind: Option<String>,
        /// A revision that a cluster keeps.
        "revisionName" revision_name: Option<Accepted>,
        /// The volume whose labels name the preference.
        "inferFromVolume" infer_from_volume: Option<String>,
        /// What to do where that volume has no such label: Reject or Ignore.
        "inferFromVolumeFailurePolicy" infer_from_volume_failure_policy: Option<Accepted>,
    }

    /// One run of a machine, as it is to be.
    InstanceTemplate {
        /// Labels and annotations of its instances.
        "metadata" metadata: Option<ObjectMeta>,
        /// What is wanted of them.
        "spec" spec: InstanceSpec,
    }

    /// A single run of a machine.
    VirtualMachineInstance {
        /// `kubevirt.io/v1`.
        "apiVersion" api_version: String,
        /// `VirtualMachineInstance`.
        "kind" kind: String,
        /// Its name and labels.
        "metadata" metadata: ObjectMeta,
        /// What is wanted.
        "spec" spec: InstanceSpec,
        /// What a cluster has made of it. It is not read.
        "status" status: Option<Silent>,
    }

    /// What a running machine is made of.
    InstanceSpec {
        /// Processors, memory, firmware and devices.
        "domain" domain: Domain,
        /// What its disks show, by their names.
        "volumes" volumes: Vec<Volume>,
        /// What its interfaces lead to, by their names.
        "networks" networks: Vec<Network>,
        /// What happens to the machine when its host is emptied. One host has nowhere to move it to.
        "evictionStrategy" eviction_strategy: Option<EvictionStrategy>,
        /// `Paused`: the machine stands still when it is started, until it is resumed.
        "startStrategy" start_strategy: Option<StartStrategy>,
        /// What a guest's wish to restart does.
        "rebootPolicy" reboot_policy: Option<RebootPolicyWord>,
        /// Seconds between the power button and the end by force; 30 if absent.
        "terminationGracePeriodSeconds" termination_grace_period_seconds: Option<i64>,
        /// The guest's host name, instead of the machine's name.
        "hostname" hostname: Option<String>,
        /// The guest's domain within a cluster.
        "subdomain" subdomain: Option<String>,
        /// Keys and passwords that are given to the guest.
        "accessCredentials" access_credentials: Option<Accepted>,
        /// The processor's architecture: amd64.
        "architecture" architecture: Option<String>,
        /// For the scheduler of a cluster.
        "affinity" affinity: Option<Accepted>,
        /// For the name service of a cluster.
        "dnsConfig" dns_config: Option<Accepted>,
        /// For the name service of a cluster.
        "dnsPolicy" dns_policy: Option<Accepted>,
        /// How a cluster finds out that a guest hangs.
        "livenessProbe" liveness_probe: Option<Accepted>,
        /// For the scheduler of a cluster.
        "nodeSelector" node_selector: Option<Accepted>,
        /// For the scheduler of a cluster.
        "priorityClassName" priority_class_name: Option<Accepted>,
        /// How a cluster finds out that a guest is up.
        "readinessProbe" readiness_probe: Option<Accepted>,
        /// For the scheduler of a cluster.
        "resourceClaims" resource_claims: Option<Accepted>,
        /// For the scheduler of a cluster.
        "schedulerName" scheduler_name: Option<Accepted>,
        /// For the scheduler of a cluster.
        "tolerations" tolerations: Option<Accepted>,
        /// For the scheduler of a cluster.
        "topologySpreadConstraints" topology_spread_constraints: Option<Accepted>,
        /// Volumes of a cluster's own tools.
        "utilityVolumes" utility_volumes: Option<Accepted>,
    }
}

words! {
    /// When a machine runs.
    RunStrategyWord ("Invalid RunStrategy ({word})") {
        /// Whenever it ends, it is started again.
        Always = "Always",
        /// Never.
        Halted = "Halted",
        /// As the user says.
        Manual = "Manual",
        /// Once, whatever its end.
        Once = "Once",
        /// Started again after a failure, not after the guest powered itself off.
        RerunOnFailure = "RerunOnFailure",
        /// Waits for a machine that another host sends.
        WaitAsReceiver = "WaitAsReceiver",
    }

    /// What happens to a machine when its host is emptied.
    EvictionStrategy {
        /// It is stopped.
        None = "None",
        /// It moves.
        LiveMigrate = "LiveMigrate",
        /// It moves if it can.
        LiveMigrateIfPossible = "LiveMigrateIfPossible",
        /// Another program takes care.
        External = "External",
    }

    /// How a machine begins.
    StartStrategy {
        /// Standing still.
        Paused = "Paused",
    }

    /// What a guest's wish to restart does.
    RebootPolicyWord {
        /// The guest starts again in place.
        Reboot = "Reboot",
        /// The machine ends, and its run strategy says what comes next.
        Terminate = "Terminate",
    }
}
