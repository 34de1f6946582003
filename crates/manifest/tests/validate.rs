//! Manifests as people write them, and what is said of them.

use std::path::Path;

use bootyard_manifest::{Severity, explain, manifests};
use bootyard_testkit::{corpus, skip};
use expect_test::{Expect, expect};

/// Everything that is said of a text.
fn said(file: &str, text: &str) -> String {
    match manifests(text.as_bytes()) {
        Err(problem) => problem.render(file, text),
        Ok(manifests) => manifests
            .iter()
            .map(|manifest| {
                let problems = manifest.problems.iter().map(|problem| problem.render(file, text));
                let verdict = if manifest.is_valid() { "valid" } else { "not valid" };
                format!(
                    "{}{}/{}: {verdict}\n",
                    problems.collect::<String>(),
                    manifest.kind,
                    manifest.name
                )
            })
            .collect(),
    }
}

#[track_caller]
fn check(text: &str, expected: &Expect) {
    expected.assert_eq(&said("vm.yaml", text));
}

/// Example 7.1 of the seed document.
const RHEL: &str = include_str!("rhel.yaml");

#[test]
fn the_example_of_a_rhel_machine_is_taken_as_it_stands() {
    check(
        RHEL,
        &expect![[r#"
        warning: vm.yaml:22:12: spec.running: spec.running is deprecated, please use spec.runStrategy instead.
           |
        22 |   running: false
           |            ^^^^^
        hint: write `runStrategy: Halted`
        warning: vm.yaml:54:25: spec.template.spec.evictionStrategy: there is no other host to which the machine could move: it is stopped when this one is emptied
           |
        54 |       evictionStrategy: LiveMigrate
           |                         ^^^^^^^^^^^
        VirtualMachine/rhel-vm: valid
    "#]],
    );
}

#[test]
fn everything_is_told_at_once() {
    let text = include_str!("everything.yaml");
    check(
        text,
        &expect![[r#"
            error: vm.yaml:4:9: metadata.name: Invalid value: "Web_1": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character
              |
            4 |   name: Web_1
              |         ^^^^^
            hint: for example `web-1`
            error: vm.yaml:6:12: spec.running: Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead
              |
            6 |   running: yes
              |            ^^^
            hint: remove `running`
            error: vm.yaml:7:3: spec.RunStrategy: unknown field `RunStrategy`
              |
            7 |   RunStrategy: Always
              |   ^^^^^^^^^^^
            hint: did you mean `runStrategy`?
            error: vm.yaml:8:16: spec.runStrategy: Invalid RunStrategy (always)
              |
            8 |   runStrategy: always
              |                ^^^^^^
            hint: did you mean `Always`?
            error: vm.yaml:10:5: spec.dataVolumeTemplates[0]: DataVolumeTemplate entry must be referenced in the VMI template's 'volumes' list
               |
            10 |   - metadata: {name: unused}
               |     ^^^^^^^^
            hint: add `- dataVolume: {name: unused}` there
            error: vm.yaml:13:28: spec.dataVolumeTemplates[0].spec.source.http.url: Invalid source URL scheme: ftp
               |
            13 |       source: {http: {url: ftp://host/image}}
               |                            ^^^^^^^^^^^^^^^^
            hint: expected http:// or https://
            error: vm.yaml:16:21: spec.template.spec.architecture: Unsupported value: "arm64": supported values: "amd64"
               |
            16 |       architecture: arm64
               |                     ^^^^^
            warning: vm.yaml:17:25: spec.template.spec.evictionStrategy: there is no other host to which the machine could move: it is stopped when this one is emptied
               |
            17 |       evictionStrategy: LiveMigrate
               |                         ^^^^^^^^^^^
            warning: vm.yaml:18:7: spec.template.spec.affinity: has no effect on this host
               |
            18 |       affinity: {}
               |       ^^^^^^^^
            error: vm.yaml:19:38: spec.template.spec.terminationGracePeriodSeconds: must be greater than or equal to 0
               |
            19 |       terminationGracePeriodSeconds: -1
               |                                      ^^
            error: vm.yaml:21:9: spec.template.spec.domain.cpu: 65 processors, of which a machine has at most 64
               |
            21 |         cpu: {cores: 0, sockets: 65}
               |         ^^^
            error: vm.yaml:21:22: spec.template.spec.domain.cpu.cores: must be greater than 0
               |
            21 |         cpu: {cores: 0, sockets: 65}
               |                      ^
            error: vm.yaml:22:25: spec.template.spec.domain.machine.type: spec.template.spec.domain.machine.type is not supported: pc-i440fx (allowed values: [q35* pc-q35*])
               |
            22 |         machine: {type: pc-i440fx}
               |                         ^^^^^^^^^
            error: vm.yaml:23:25: spec.template.spec.domain.memory.guest: Invalid value: unknown suffix `Gib` in `8Gib`; expected one of Ki, Mi, Gi, Ti, Pi, Ei, k, M, G, T, P, E
               |
            23 |         memory: {guest: 8Gib, hugepages: {pageSize: 4Ki}}
               |                         ^^^^
            error: vm.yaml:23:53: spec.template.spec.domain.memory.hugepages.pageSize: Unsupported value: "4Ki": supported values: "2Mi", "1Gi"
               |
            23 |         memory: {guest: 8Gib, hugepages: {pageSize: 4Ki}}
               |                                                     ^^^
            error: vm.yaml:25:17: spec.template.spec.domain.firmware.uuid: expected text, got a number
               |
            25 |           uuid: 1234
               |                 ^^^^
            hint: put it into quotes
            error: vm.yaml:26:34: spec.template.spec.domain.firmware.bootloader.efi: spec.template.spec.domain.firmware.bootloader has both EFI and BIOS configured, but they are mutually exclusive.
               |
            26 |           bootloader: {bios: {}, efi: {}}
               |                                  ^^^
            error: vm.yaml:26:34: spec.template.spec.domain.firmware.bootloader.efi: spec.template.spec.domain.firmware.bootloader.efi has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled.
               |
            26 |           bootloader: {bios: {}, efi: {}}
               |                                  ^^^
            hint: write `features: {smm: {enabled: true}}` under `domain`, or `secureBoot: false`
            error: vm.yaml:27:36: spec.template.spec.domain.firmware.kernelBoot.kernelArgs: kernel arguments cannot be provided without an external kernel
               |
            27 |           kernelBoot: {kernelArgs: quiet}
               |                                    ^^^^^
            error: vm.yaml:31:25: spec.template.spec.domain.devices.disks[0].disk.bus: VIRTOI bus is not supported
               |
            31 |             disk: {bus: virtoi}
               |                         ^^^^^^
            hint: did you mean `virtio`?
            error: vm.yaml:33:20: spec.template.spec.domain.devices.disks[0].cache: Unsupported value: "fast": supported values: "none", "writethrough", "writeback"
               |
            33 |             cache: fast
               |                    ^^^^
            error: vm.yaml:34:13: spec.template.spec.domain.devices.disks[1]: spec.template.spec.domain.devices.disks[1] must have only a single device type defined
               |
            34 |           - name: root
               |             ^^^^
            error: vm.yaml:34:19: spec.template.spec.domain.devices.disks[1].name: spec.template.spec.domain.devices.disks[0] and spec.template.spec.domain.devices.disks[1] must not have the same Name.
               |
            34 |           - name: root
               |                   ^^^^
            error: vm.yaml:35:25: spec.template.spec.domain.devices.disks[1].disk.bus: IDE bus is not supported
               |
            35 |             disk: {bus: ide}
               |                         ^^^
            hint: one of "virtio", "sata", "scsi", "usb"
            error: vm.yaml:36:26: spec.template.spec.domain.devices.disks[1].cdrom.bus: Bus type virtio is invalid for CD-ROM device
               |
            36 |             cdrom: {bus: virtio}
               |                          ^^^^^^
            hint: use `scsi` or `sata`
            error: vm.yaml:37:24: spec.template.spec.domain.devices.disks[1].bootOrder: Boot order for spec.template.spec.domain.devices.disks[1].bootOrder already set for a different device.
               |
            37 |             bootOrder: 1
               |                        ^
            hint: `spec.template.spec.domain.devices.disks[0]` has it
            error: vm.yaml:38:21: spec.template.spec.domain.devices.disks[1].serial: spec.template.spec.domain.devices.disks[1].serial must be made up of the following characters [A-Za-z0-9_.+-], if specified
               |
            38 |             serial: "a b"
               |                     ^^^^^
            error: vm.yaml:39:19: spec.template.spec.domain.devices.disks[2].name: spec.template.spec.domain.devices.disks[2].Name 'dat' not found.
               |
            39 |           - name: dat
               |                   ^^^
            hint: there must be a volume `dat` in `volumes`
            error: vm.yaml:40:41: spec.template.spec.domain.devices.disks[2].disk.readonly: sata hard-disks do not support read-only.
               |
            40 |             disk: {bus: sata, readonly: true}
               |                                         ^^^^
            hint: use `scsi` or `virtio`
            error: vm.yaml:41:24: spec.template.spec.domain.devices.disks[2].bootOrder: spec.template.spec.domain.devices.disks[2].bootOrder must have a boot order > 0, if supplied
               |
            41 |             bootOrder: 0
               |                        ^
            error: vm.yaml:43:24: spec.template.spec.domain.devices.disks[3].lun.bus: Bus type is invalid for LUN device
               |
            43 |             lun: {bus: virtio}
               |                        ^^^^^^
            hint: use `scsi`
            error: vm.yaml:44:32: spec.template.spec.domain.devices.disks[3].dedicatedIOThread: expected true or false, got text
               |
            44 |             dedicatedIOThread: "yes"
               |                                ^^^^^
            error: vm.yaml:45:43: spec.template.spec.domain.devices.disks[3].blockSize.custom.logical: Logical size 4096 must be the same or less than the physical size of 512
               |
            45 |             blockSize: {custom: {logical: 4096, physical: 512}}
               |                                           ^^^^
            error: vm.yaml:49:13: spec.template.spec.domain.devices.interfaces[0].bridge: logical error: only one interface binding can be set
               |
            49 |             bridge: {}
               |             ^^^^^^
            error: vm.yaml:49:13: spec.template.spec.domain.devices.interfaces[0].bridge: Bridge on pod network configuration is not enabled
               |
            49 |             bridge: {}
               |             ^^^^^^
            hint: use `masquerade: {}`, or a `multus` network whose name is a bridge of this host
            error: vm.yaml:50:25: spec.template.spec.domain.devices.interfaces[0].macAddress: interface spec.template.spec.domain.devices.interfaces[0].name has malformed MAC address (52:54:00).
               |
            50 |             macAddress: 52:54:00
               |                         ^^^^^^^^
            hint: as `52:54:00:12:34:56`
            error: vm.yaml:51:20: spec.template.spec.domain.devices.interfaces[0].model: Unsupported value: "e1000f": supported values: "virtio", "e1000e", "e1000", "igb", "ne2k_pci", "pcnet", "rtl8139"
               |
            51 |             model: e1000f
               |                    ^^^^^^
            hint: did you mean `e1000e`?
            error: vm.yaml:52:28: spec.template.spec.domain.devices.interfaces[0].ports[0].port: Port field is mandatory, and must be 0 < x < 65536.
               |
            52 |             ports: [{port: 0}, {name: http, port: 80}, {name: http, port: 65536}]
               |                            ^
            error: vm.yaml:52:63: spec.template.spec.domain.devices.interfaces[0].ports[2].name: Duplicate name of the port: http
               |
            52 |             ports: [{port: 0}, {name: http, port: 80}, {name: http, port: 65536}]
               |                                                               ^^^^
            error: vm.yaml:52:75: spec.template.spec.domain.devices.interfaces[0].ports[2].port: expected a number from 0 to 65535
               |
            52 |             ports: [{port: 0}, {name: http, port: 80}, {name: http, port: 65536}]
               |                                                                           ^^^^^
            error: vm.yaml:54:13: spec.template.spec.domain.devices.interfaces[1].masquerade: Masquerade interface only implemented with pod network
               |
            54 |             masquerade: {}
               |             ^^^^^^^^^^
            hint: use `bridge: {}`
            error: vm.yaml:55:19: spec.template.spec.domain.devices.interfaces[2].name: spec.template.spec.domain.devices.interfaces[2].name 'third' not found.
               |
            55 |           - name: third
               |                   ^^^^^
            hint: there must be a network `third` in `networks`, as `{name: third, pod: {}}`
            error: vm.yaml:62:9: spec.template.spec.networks[2]: more than one interface is connected to a pod network in spec.template.spec.domain.devices.interfaces
               |
            62 |       - name: unused
               |         ^^^^
            error: vm.yaml:62:15: spec.template.spec.networks[2].name: spec.template.spec.networks[2].name 'unused' not found.
               |
            62 |       - name: unused
               |               ^^^^^^
            hint: no interface leads to this network; remove it or add one
            warning: vm.yaml:66:40: spec.template.spec.volumes[0].dataVolume.type: the type "persistentVolumeClaim" is none of "dataVolume" and "": the machine does not start
               |
            66 |         dataVolume: {name: root, type: persistentVolumeClaim}
               |                                        ^^^^^^^^^^^^^^^^^^^^^
            hint: remove `type`
            error: vm.yaml:67:9: spec.template.spec.volumes[1]: spec.template.spec.volumes[1] must have exactly one source type set
               |
            67 |       - name: data
               |         ^^^^
            hint: emptyDisk and hostDisk are set
            warning: vm.yaml:67:15: spec.template.spec.volumes[1].name: no disk shows the volume `data`: one is added, as in a cluster
               |
            67 |       - name: data
               |               ^^^^
            hint: add `- {name: data, disk: {bus: virtio}}` to `domain.devices.disks`
            error: vm.yaml:68:9: spec.template.spec.volumes[1].emptyDisk.capacity: Required value
               |
            68 |         emptyDisk: {}
               |         ^^^^^^^^^
            error: vm.yaml:69:36: spec.template.spec.volumes[1].hostDisk.type: Unsupported value: "Disc": supported values: "Disk", "DiskOrCreate"
               |
            69 |         hostDisk: {path: /x, type: Disc}
               |                                    ^^^^
            hint: did you mean `Disk`?
            error: vm.yaml:70:9: spec.template.spec.volumes[2]: spec.template.spec.volumes[2] must have exactly one source type set
               |
            70 |       - name: lun
               |         ^^^^
            hint: for example `emptyDisk: {capacity: 1Gi}` or `dataVolume: {name: …}`
            VirtualMachine/Web_1: not valid
        "#]],
    );
}

#[test]
fn volumes_of_every_kind_are_looked_at() {
    check(
        include_str!("volumes.yaml"),
        &expect![[r#"
            error: vm.yaml:6:36: spec.domain.resources.requests.memory: spec.domain.resources.requests.memory '512Ki': must be greater than or equal to 1M.
              |
            6 |     resources: {requests: {memory: 512Ki}, limits: {memory: 64M}}
              |                                    ^^^^^
            error: vm.yaml:11:27: spec.volumes[0].emptyDisk.capacity: the size for volume a is too low
               |
            11 |     emptyDisk: {capacity: 1k}
               |                           ^^
            hint: at least 1Mi
            error: vm.yaml:13:28: spec.volumes[1].containerDisk.image: Required value
               |
            13 |     containerDisk: {image: ""}
               |                            ^^
            error: vm.yaml:15:22: spec.volumes[2].hostDisk.path: spec.volumes[2].hostDisk.path is required for hostDisk volume
               |
            15 |     hostDisk: {path: "", type: Disk, capacity: 1Gi}
               |                      ^^
            error: vm.yaml:15:48: spec.volumes[2].hostDisk.capacity: spec.volumes[2].hostDisk.capacity is allowed to pass only with spec.volumes[2].hostDisk.type equal to DiskOrCreate
               |
            15 |     hostDisk: {path: "", type: Disk, capacity: 1Gi}
               |                                                ^^^
            error: vm.yaml:17:5: spec.volumes[3].cloudInitNoCloud: spec.volumes[3].cloudInitNoCloud must have at least one userdatasource or one networkdatasource set.
               |
            17 |     cloudInitNoCloud: {}
               |     ^^^^^^^^^^^^^^^^
            error: vm.yaml:19:57: spec.volumes[4].cloudInitConfigDrive.userDataBase64: spec.volumes[4].cloudInitConfigDrive must have only one userdata source set.
               |
            19 |     cloudInitConfigDrive: {userData: a, userDataBase64: "?", networkDataBase64: eA==}
               |                                                         ^^^
            error: vm.yaml:19:57: spec.volumes[4].cloudInitConfigDrive.userDataBase64: spec.volumes[4].cloudInitConfigDrive.userDataBase64 is not a valid base64 value.
               |
            19 |     cloudInitConfigDrive: {userData: a, userDataBase64: "?", networkDataBase64: eA==}
               |                                                         ^^^
            error: vm.yaml:23:40: spec.volumes[6].persistentVolumeClaim.claimName: Invalid value: "Base": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character
               |
            23 |     persistentVolumeClaim: {claimName: Base}
               |                                        ^^^^
            hint: for example `base`
            error: vm.yaml:24:5: spec.volumes[7]: spec.volumes[7] must have exactly one source type set
               |
            24 |   - name: h
               |     ^^^^
            hint: configMap and secret are set
            error: vm.yaml:26:26: spec.volumes[7].secret.secretName: expected text, got a boolean
               |
            26 |     secret: {secretName: y}
               |                          ^
            hint: put it into quotes
            warning: vm.yaml:29:11: spec.volumes[9].name: no disk shows the volume `j`: one is added, as in a cluster
               |
            29 |   - name: j
               |           ^
            hint: add `- {name: j, disk: {bus: virtio}}` to `domain.devices.disks`
            VirtualMachineInstance/all: not valid
        "#]],
    );
}

#[test]
fn data_volumes_are_refused_in_cdis_words() {
    check(
        include_str!("data-volumes.yaml"),
        &expect![[r#"
            error: vm.yaml:4:1: spec: Missing Data volume PVC
              |
            4 | spec: {}
              | ^^^^
            hint: write `storage: {resources: {requests: {storage: 10Gi}}}`
            error: vm.yaml:4:1: spec: Data volume should have either Source or SourceRef, or be externally populated
              |
            4 | spec: {}
              | ^^^^
            hint: an empty volume has `source: {blank: {}}`
            DataVolume/nothing: not valid
            error: vm.yaml:11:3: spec.sourceRef: Data volume should have either Source or SourceRef, or be externally populated
               |
            11 |   sourceRef: {kind: DataSource, name: rhel9}
               |   ^^^^^^^^^
            error: vm.yaml:12:3: spec.pvc: Duplicate storage definition, both target storage and target pvc defined
               |
            12 |   pvc: {accessModes: [ReadWriteOnce, ReadWriteMany], resources: {requests: {storage: 1Gi}}}
               |   ^^^
            DataVolume/both: not valid
            error: vm.yaml:19:12: spec.source.blank: Multiple Data volume sources
               |
            19 |   source: {blank: {}, http: {url: ""}}
               |            ^^^^^
            hint: `http` is set, too
            error: vm.yaml:19:35: spec.source.http.url: source URL is empty
               |
            19 |   source: {blank: {}, http: {url: ""}}
               |                                   ^^
            error: vm.yaml:20:16: spec.contentType: SourceType cannot be blank and the contentType be archive
               |
            20 |   contentType: archive
               |                ^^^^^^^
            error: vm.yaml:21:3: spec.pvc.accessModes: Required value: at least 1 access mode is required
               |
            21 |   pvc: {resources: {requests: {storage: 500k}}}
               |   ^^^
            hint: write `accessModes: [ReadWriteOnce]`
            error: vm.yaml:21:41: spec.pvc.resources.requests.storage: PVC size should be at least 1MiB
               |
            21 |   pvc: {resources: {requests: {storage: 500k}}}
               |                                         ^^^^
            DataVolume/sizes: not valid
            error: vm.yaml:27:52: spec.source.http.checksum: Invalid checksum format: unknown digest algorithm `sha255`; expected md5, sha1, sha256 or sha512
               |
            27 |   source: {http: {url: "https://host/a", checksum: "sha255:00"}}
               |                                                    ^^^^^^^^^^^
            error: vm.yaml:28:16: spec.contentType: Unsupported value: "disk": supported values: "kubevirt", "archive"
               |
            28 |   contentType: disk
               |                ^^^^
            error: vm.yaml:29:23: spec.pvc.accessModes[0]: Unsupported value: "RWO": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"
               |
            29 |   pvc: {accessModes: [RWO], resources: {requests: {storage: "0"}}}
               |                       ^^^
            error: vm.yaml:29:61: spec.pvc.resources.requests.storage: PVC size can't be equal or less than zero
               |
            29 |   pvc: {accessModes: [RWO], resources: {requests: {storage: "0"}}}
               |                                                             ^^^
            DataVolume/zero: not valid
            error: vm.yaml:35:28: spec.source.registry.url: Illegal registry source URL scheme https
               |
            35 |   source: {registry: {url: "https://host/a", pullMethod: host}}
               |                            ^^^^^^^^^^^^^^^^
            hint: expected docker:// or oci-archive:
            error: vm.yaml:35:58: spec.source.registry.pullMethod: PullMethod "host" is neither pod nor node
               |
            35 |   source: {registry: {url: "https://host/a", pullMethod: host}}
               |                                                          ^^^^
            error: vm.yaml:36:45: spec.storage.resources.requests.storage: PVC size can't be equal or less than zero
               |
            36 |   storage: {resources: {requests: {storage: -1Gi}}}
               |                                             ^^^^
            DataVolume/registry: not valid
            DataVolume/clone: valid
            error: vm.yaml:51:35: spec.template.spec.source: the source must be registry or pvc
               |
            51 |   template: {metadata: {}, spec: {source: {http: {url: "https://host/a"}}, storage: {resources: {requests: {storage: 1Gi}}}}}
               |                                   ^^^^^^
            DataImportCron/cron: not valid
            error: vm.yaml:56:8: spec.source: expected exactly one of pvc, snapshot and dataSource
               |
            56 | spec: {source: {}}
               |        ^^^^^^
            DataSource/rhel9: not valid
        "#]],
    );
}

#[test]
fn files_that_are_no_manifests_are_told_apart() {
    for (text, expected) in [
        (
            "",
            expect![[r#"
            error: vm.yaml:1:1: there is no object in it
        "#]],
        ),
        (
            "a: [",
            expect![[r#"
            error: vm.yaml:1:4: unclosed bracket '['
              |
            1 | a: [
              |    ^
        "#]],
        ),
        (
            "- a\n",
            expect![[r#"
            error: vm.yaml:1:1: expected an object, got a list
              |
            1 | - a
              | ^
            /: not valid
        "#]],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
            expect![[r#"
            error: vm.yaml:2:7: kind: the kind Pod is not known here
              |
            2 | kind: Pod
              |       ^^^
            hint: `bootyard explain` lists the kinds
            Pod/a: not valid
        "#]],
        ),
        (
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachines\n",
            expect![[r#"
            error: vm.yaml:2:7: kind: the kind VirtualMachines is not known here
              |
            2 | kind: VirtualMachines
              |       ^^^^^^^^^^^^^^^
            hint: did you mean `VirtualMachine`?
            VirtualMachines/: not valid
        "#]],
        ),
        (
            "apiVersion: v1\nkind: VirtualMachine\n",
            expect![[r#"
            error: vm.yaml:1:13: apiVersion: no matches for kind "VirtualMachine" in version "v1"
              |
            1 | apiVersion: v1
              |             ^^
            hint: write `kubevirt.io/v1`
            VirtualMachine/: not valid
        "#]],
        ),
        (
            "kind: Secret\n",
            expect![[r#"
                error: vm.yaml:1:1: apiVersion: Required value
                error: vm.yaml:1:1: metadata: Required value
                Secret/: not valid
            "#]],
        ),
    ] {
        check(text, &expected);
    }
}

#[test]
fn a_secret_is_never_shown() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: hunter2}\nstringData: {b: [hunter2]}\n";
    let said = said("s.yaml", text);
    assert!(!said.contains("hunter2"), "{said}");
    expect![[r#"
        error: s.yaml:4:11: data.a: is not a valid base64 value
        hint: `stringData` takes text as it is
        error: s.yaml:5:14: stringData.b: expected text, got a list
        Secret/s: not valid
    "#]].assert_eq(&said);
}

#[test]
fn json_lists_anchors_and_several_documents_are_read() {
    let json = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"List\",\n\t\"items\": [\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"a\"}, \"data\": {\"k\": \"v\"}},\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"B\"}}\n\t]\n}\n";
    check(
        json,
        &expect![[r#"
        ConfigMap/a: valid
        error: vm.yaml:5:66: metadata.name: Invalid value: "B": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character
          |
        5 | 		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "B"}}
          | 		                                                               ^^^
        hint: for example `b`
        ConfigMap/B: not valid
    "#]],
    );
    let yaml = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: &labels {app: x}}
data: {mac: 52:54:00:12:34:56}
---
# nothing but a comment
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two, labels: {on: off}}
";
    check(
        yaml,
        &expect![[r#"
        ConfigMap/one: valid
        error: vm.yaml:10:36: metadata.labels.true: expected text, got a boolean
           |
        10 | metadata: {name: two, labels: {on: off}}
           |                                    ^^^
        hint: put it into quotes
        ConfigMap/two: not valid
    "#]],
    );
}

#[test]
fn the_corpus_is_looked_at() {
    let Some(corpus) = corpus() else { skip!("no corpus") };
    let mut all = String::new();
    for folder in ["cdi/manifests-example", "kubevirt"] {
        let entries = fs_err::read_dir(corpus.join(folder)).expect("a folder");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "yaml")) {
            let text = fs_err::read_to_string(path).expect("a text");
            let name = path.file_name().map(Path::new).expect("a name").display().to_string();
            all.push_str(&said(&name, &text));
        }
    }
    expect![[r#"
        DataVolume/blank-image-datavolume: valid
        ConfigMap/tls-certs: valid
        DataVolume/clone-block-datavolume: valid
        error: clone-datavolume.yaml:6:1: spec: Missing Data volume PVC
          |
        6 | spec:
          | ^^^^
        hint: write `storage: {resources: {requests: {storage: 10Gi}}}`
        DataVolume/cloned-datavolume: not valid
        Secret/endpoint-secret: valid
        error: example-cdiconfig.yaml:2:7: kind: the kind CDIConfig is not known here
          |
        2 | kind: CDIConfig
          |       ^^^^^^^^^
        hint: `bootyard explain` lists the kinds
        CDIConfig/config: not valid
        DataVolume/import-archive-block-datavolume: valid
        DataVolume/import-archive-datavolume: valid
        error: import-block-pv.yaml:1:7: kind: the kind PersistentVolume is not known here
          |
        1 | kind: PersistentVolume
          |       ^^^^^^^^^^^^^^^^
        hint: `bootyard explain` lists the kinds
        PersistentVolume/import-block-pv: not valid
        DataVolume/import-kubevirt-block-datavolume: valid
        Secret/gcs-secret: valid
        DataVolume/my-data-volume: valid
        DataVolume/my-data-volume: valid
        DataVolume/my-data-volume: valid
        DataVolume/my-data-volume: valid
        DataVolume/registry-image-datavolume: valid
        DataVolume/registry-image-datavolume: valid
        error: upload-block-datavolume-token.yaml:2:7: kind: the kind UploadTokenRequest is not known here
          |
        2 | kind: UploadTokenRequest
          |       ^^^^^^^^^^^^^^^^^^
        hint: `bootyard explain` lists the kinds
        UploadTokenRequest/upload-block-datavolume-token: not valid
        DataVolume/upload-block-datavolume: valid
        error: upload-datavolume-token.yaml:2:7: kind: the kind UploadTokenRequest is not known here
          |
        2 | kind: UploadTokenRequest
          |       ^^^^^^^^^^^^^^^^^^
        hint: `bootyard explain` lists the kinds
        UploadTokenRequest/upload-datavolume: not valid
        DataVolume/upload-datavolume: valid
        error: vddk-args-annotation.yaml:10:9: spec.source.vddk: the source vddk is not among those that this host imports
           |
        10 |         vddk:
           |         ^^^^
        hint: http, s3, gcs, registry, pvc, upload, blank
        DataVolume/vddk-dv: not valid
        ConfigMap/vddk-arguments: valid
        error: vddk-args-field.yaml:7:9: spec.source.vddk: the source vddk is not among those that this host imports
          |
        7 |         vddk:
          |         ^^^^
        hint: http, s3, gcs, registry, pvc, upload, blank
        DataVolume/vddk-dv: not valid
        ConfigMap/v2v-vmware: valid
        warning: vm-dv.yaml:24:12: spec.running: spec.running is deprecated, please use spec.runStrategy instead.
           |
        24 |   running: false
           |            ^^^^^
        hint: write `runStrategy: Halted`
        VirtualMachine/vm-cirros-datavolume: valid
        VirtualMachineInstance/vmi-nocloud: valid
    "#]].assert_eq(&all);
}

#[test]
fn fields_are_explained() {
    for (path, expected) in [
        (
            "vm.spec.runStrategy",
            expect![[r#"
            KIND:     VirtualMachine
            VERSION:  kubevirt.io/v1
            FIELD:    runStrategy <a word>

            DESCRIPTION:
                When the machine runs, and what follows its end.
                One of: Always, Halted, Manual, Once, RerunOnFailure, WaitAsReceiver
        "#]],
        ),
        (
            "spec.template.spec.volumes[0].emptyDisk",
            expect![[r#"
            KIND:     VirtualMachine
            VERSION:  kubevirt.io/v1
            FIELD:    emptyDisk <EmptyDisk>

            DESCRIPTION:
                An empty disk, which goes away when the machine stops and stays when the guest restarts.

            FIELDS:
              capacity <a quantity such as 8Gi> -required-
                Its size, of which whole MiB are used.
        "#]],
        ),
        (
            "dv.spec.source",
            expect![[r#"
            KIND:     DataVolume
            VERSION:  cdi.kubevirt.io/v1beta1
            FIELD:    source <DataVolumeSource>

            DESCRIPTION:
                What it is filled with.

            FIELDS:
              http <HttpSource>
                An image from a web server.
              s3 <BucketSource>
                An image from an S3 bucket.
              gcs <BucketSource>
                An image from a Google bucket.
              registry <RegistrySource>
                An image in a container image.
              pvc <ObjectRef>
                A copy of another volume.
              snapshot <ObjectRef>
                A copy of a snapshot.
              upload <{}, which turns it on>
                What a client uploads.
              blank <{}, which turns it on>
                Nothing.
              imageio <anything, without effect here>
                An image of oVirt.
              vddk <anything, without effect here>
                An image of VMware.
        "#]],
        ),
    ] {
        expected.assert_eq(&explain(path).expect("it is explained"));
    }
    let error = explain("vm.spec.runStrateg").unwrap_err();
    assert_eq!(error.to_string(), "`VirtualMachine.spec` has no field `runStrateg`");
    assert_eq!(error.hint(), Some("did you mean `runStrategy`?"));
    assert!(explain("").unwrap().contains("DataVolume (dv, dvs) <cdi.kubevirt.io/v1beta1>"));
}

#[test]
fn a_warning_is_no_refusal() {
    let found = manifests(RHEL.as_bytes()).unwrap();
    assert!(found[0].problems.iter().any(|problem| problem.severity == Severity::Warning));
    assert!(found[0].is_valid() && found[0].object.is_some());
}
