//! Manifests as people write them, and what is said of them.

use bootyard_manifest::{Problem, Severity, explain, manifests};
use bootyard_testkit::{corpus, skip};
use expect_test::{Expect, expect};

/// Everything that is said of a text, with what is underlined.
fn said(text: &str) -> String {
    let line = |problem: &Problem| {
        let Problem { severity, path, mark, message, hint, is_secret } = problem;
        let line = text.lines().nth(mark.line - 1).filter(|_| !is_secret).unwrap_or_default();
        let marked: String = line.chars().skip(mark.column - 1).take(mark.width).collect();
        let hint = hint.as_ref().map(|hint| format!("\n    hint: {hint}")).unwrap_or_default();
        format!("{severity:?} {}:{} [{marked}] {path}: {message}{hint}\n", mark.line, mark.column)
    };
    match manifests(text.as_bytes()) {
        Err(problem) => line(&problem),
        Ok(manifests) => manifests
            .iter()
            .map(|manifest| {
                let verdict = if manifest.is_valid() { "valid" } else { "not valid" };
                let problems: String = manifest.problems.iter().map(line).collect();
                format!("{problems}{}/{}: {verdict}\n", manifest.kind, manifest.name)
            })
            .collect(),
    }
}

#[track_caller]
fn check(text: &str, expected: &Expect) {
    expected.assert_eq(&said(text));
}

/// Example 7.1 of the seed document.
const RHEL: &str = include_str!("rhel.yaml");

#[test]
fn the_example_of_a_rhel_machine_is_taken_as_it_stands() {
    check(
        RHEL,
        &expect![[r#"
            Warning 22:12 [false] spec.running: spec.running is deprecated, please use spec.runStrategy instead.
                hint: write `runStrategy: Halted`
            Warning 54:25 [LiveMigrate] spec.template.spec.evictionStrategy: there is no other host to which the machine could move: it is stopped when this one is emptied
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
            Error 4:9 [Web_1] metadata.name: Invalid value: "Web_1": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character
                hint: for example `web-1`
            Error 6:12 [yes] spec.running: Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead
                hint: remove `running`
            Error 7:3 [RunStrategy] spec.RunStrategy: unknown field `RunStrategy`
                hint: did you mean `runStrategy`?
            Error 8:16 [always] spec.runStrategy: Invalid RunStrategy (always)
                hint: did you mean `Always`?
            Error 10:5 [metadata] spec.dataVolumeTemplates[0]: DataVolumeTemplate entry must be referenced in the VMI template's 'volumes' list
                hint: add `- dataVolume: {name: unused}` there
            Error 13:28 [ftp://host/image] spec.dataVolumeTemplates[0].spec.source.http.url: Invalid source URL scheme: ftp
                hint: expected http:// or https://
            Error 16:21 [arm64] spec.template.spec.architecture: Unsupported value: "arm64": supported values: "amd64"
            Warning 17:25 [LiveMigrate] spec.template.spec.evictionStrategy: there is no other host to which the machine could move: it is stopped when this one is emptied
            Warning 18:7 [affinity] spec.template.spec.affinity: has no effect on this host
            Error 19:38 [-1] spec.template.spec.terminationGracePeriodSeconds: must be greater than or equal to 0
            Error 21:9 [cpu] spec.template.spec.domain.cpu: 65 processors, of which a machine has at most 64
            Error 21:22 [0] spec.template.spec.domain.cpu.cores: must be greater than 0
            Error 22:25 [pc-i440fx] spec.template.spec.domain.machine.type: spec.template.spec.domain.machine.type is not supported: pc-i440fx (allowed values: [q35* pc-q35*])
            Error 23:25 [8Gib] spec.template.spec.domain.memory.guest: Invalid value: unknown suffix `Gib` in `8Gib`; expected one of Ki, Mi, Gi, Ti, Pi, Ei, k, M, G, T, P, E
            Error 23:53 [4Ki] spec.template.spec.domain.memory.hugepages.pageSize: Unsupported value: "4Ki": supported values: "2Mi", "1Gi"
            Error 25:17 [1234] spec.template.spec.domain.firmware.uuid: expected text, got a number
                hint: put it into quotes
            Error 26:34 [efi] spec.template.spec.domain.firmware.bootloader.efi: spec.template.spec.domain.firmware.bootloader has both EFI and BIOS configured, but they are mutually exclusive.
            Error 26:34 [efi] spec.template.spec.domain.firmware.bootloader.efi: spec.template.spec.domain.firmware.bootloader.efi has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled.
                hint: write `features: {smm: {enabled: true}}` under `domain`, or `secureBoot: false`
            Error 27:36 [quiet] spec.template.spec.domain.firmware.kernelBoot.kernelArgs: kernel arguments cannot be provided without an external kernel
            Error 31:25 [virtoi] spec.template.spec.domain.devices.disks[0].disk.bus: VIRTOI bus is not supported
                hint: did you mean `virtio`?
            Error 33:20 [fast] spec.template.spec.domain.devices.disks[0].cache: Unsupported value: "fast": supported values: "none", "writethrough", "writeback"
            Error 34:13 [name] spec.template.spec.domain.devices.disks[1]: spec.template.spec.domain.devices.disks[1] must have only a single device type defined
            Error 34:19 [root] spec.template.spec.domain.devices.disks[1].name: spec.template.spec.domain.devices.disks[0] and spec.template.spec.domain.devices.disks[1] must not have the same Name.
            Error 35:25 [ide] spec.template.spec.domain.devices.disks[1].disk.bus: IDE bus is not supported
                hint: one of "virtio", "sata", "scsi", "usb"
            Error 36:26 [virtio] spec.template.spec.domain.devices.disks[1].cdrom.bus: Bus type virtio is invalid for CD-ROM device
                hint: use `scsi` or `sata`
            Error 37:24 [1] spec.template.spec.domain.devices.disks[1].bootOrder: Boot order for spec.template.spec.domain.devices.disks[1].bootOrder already set for a different device.
                hint: `spec.template.spec.domain.devices.disks[0]` has it
            Error 38:21 ["a b"] spec.template.spec.domain.devices.disks[1].serial: spec.template.spec.domain.devices.disks[1].serial must be made up of the following characters [A-Za-z0-9_.+-], if specified
            Error 39:19 [dat] spec.template.spec.domain.devices.disks[2].name: spec.template.spec.domain.devices.disks[2].Name 'dat' not found.
                hint: there must be a volume `dat` in `volumes`
            Error 40:41 [true] spec.template.spec.domain.devices.disks[2].disk.readonly: sata hard-disks do not support read-only.
                hint: use `scsi` or `virtio`
            Error 41:24 [0] spec.template.spec.domain.devices.disks[2].bootOrder: spec.template.spec.domain.devices.disks[2].bootOrder must have a boot order > 0, if supplied
            Error 43:24 [virtio] spec.template.spec.domain.devices.disks[3].lun.bus: Bus type is invalid for LUN device
                hint: use `scsi`
            Error 44:32 ["yes"] spec.template.spec.domain.devices.disks[3].dedicatedIOThread: expected true or false, got text
            Error 45:43 [4096] spec.template.spec.domain.devices.disks[3].blockSize.custom.logical: Logical size 4096 must be the same or less than the physical size of 512
            Error 49:13 [bridge] spec.template.spec.domain.devices.interfaces[0].bridge: logical error: only one interface binding can be set
            Error 49:13 [bridge] spec.template.spec.domain.devices.interfaces[0].bridge: Bridge on pod network configuration is not enabled
                hint: use `masquerade: {}`, or a `multus` network whose name is a bridge of this host
            Error 50:25 [52:54:00] spec.template.spec.domain.devices.interfaces[0].macAddress: interface spec.template.spec.domain.devices.interfaces[0].name has malformed MAC address (52:54:00).
                hint: as `52:54:00:12:34:56`
            Error 51:20 [e1000f] spec.template.spec.domain.devices.interfaces[0].model: Unsupported value: "e1000f": supported values: "virtio", "e1000e", "e1000", "igb", "ne2k_pci", "pcnet", "rtl8139"
                hint: did you mean `e1000e`?
            Error 52:28 [0] spec.template.spec.domain.devices.interfaces[0].ports[0].port: Port field is mandatory, and must be 0 < x < 65536.
            Error 52:63 [http] spec.template.spec.domain.devices.interfaces[0].ports[2].name: Duplicate name of the port: http
            Error 52:75 [65536] spec.template.spec.domain.devices.interfaces[0].ports[2].port: expected a number from 0 to 65535
            Error 54:13 [masquerade] spec.template.spec.domain.devices.interfaces[1].masquerade: Masquerade interface only implemented with pod network
                hint: use `bridge: {}`
            Error 55:19 [third] spec.template.spec.domain.devices.interfaces[2].name: spec.template.spec.domain.devices.interfaces[2].name 'third' not found.
                hint: there must be a network `third` in `networks`, as `{name: third, pod: {}}`
            Error 62:9 [name] spec.template.spec.networks[2]: more than one interface is connected to a pod network in spec.template.spec.domain.devices.interfaces
            Error 62:15 [unused] spec.template.spec.networks[2].name: spec.template.spec.networks[2].name 'unused' not found.
                hint: no interface leads to this network; remove it or add one
            Warning 66:40 [persistentVolumeClaim] spec.template.spec.volumes[0].dataVolume.type: the type "persistentVolumeClaim" is none of "dataVolume" and "": the machine does not start
                hint: remove `type`
            Error 67:9 [name] spec.template.spec.volumes[1]: spec.template.spec.volumes[1] must have exactly one source type set
                hint: emptyDisk and hostDisk are set
            Warning 67:15 [data] spec.template.spec.volumes[1].name: no disk shows the volume `data`: one is added, as in a cluster
                hint: add `- {name: data, disk: {bus: virtio}}` to `domain.devices.disks`
            Error 68:9 [emptyDisk] spec.template.spec.volumes[1].emptyDisk.capacity: Required value
            Error 69:36 [Disc] spec.template.spec.volumes[1].hostDisk.type: Unsupported value: "Disc": supported values: "Disk", "DiskOrCreate"
                hint: did you mean `Disk`?
            Error 70:9 [name] spec.template.spec.volumes[2]: spec.template.spec.volumes[2] must have exactly one source type set
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
            Error 6:36 [512Ki] spec.domain.resources.requests.memory: spec.domain.resources.requests.memory '512Ki': must be greater than or equal to 1M.
            Error 11:27 [1k] spec.volumes[0].emptyDisk.capacity: the size for volume a is too low
                hint: at least 1Mi
            Error 13:28 [""] spec.volumes[1].containerDisk.image: Required value
            Error 15:22 [""] spec.volumes[2].hostDisk.path: spec.volumes[2].hostDisk.path is required for hostDisk volume
            Error 15:48 [1Gi] spec.volumes[2].hostDisk.capacity: spec.volumes[2].hostDisk.capacity is allowed to pass only with spec.volumes[2].hostDisk.type equal to DiskOrCreate
            Error 17:5 [cloudInitNoCloud] spec.volumes[3].cloudInitNoCloud: spec.volumes[3].cloudInitNoCloud must have at least one userdatasource or one networkdatasource set.
            Error 19:57 ["?"] spec.volumes[4].cloudInitConfigDrive.userDataBase64: spec.volumes[4].cloudInitConfigDrive must have only one userdata source set.
            Error 19:57 ["?"] spec.volumes[4].cloudInitConfigDrive.userDataBase64: spec.volumes[4].cloudInitConfigDrive.userDataBase64 is not a valid base64 value.
            Error 23:40 [Base] spec.volumes[6].persistentVolumeClaim.claimName: Invalid value: "Base": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character
                hint: for example `base`
            Error 24:5 [name] spec.volumes[7]: spec.volumes[7] must have exactly one source type set
                hint: configMap and secret are set
            Error 26:26 [y] spec.volumes[7].secret.secretName: expected text, got a boolean
                hint: put it into quotes
            Warning 29:11 [j] spec.volumes[9].name: no disk shows the volume `j`: one is added, as in a cluster
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
            Error 4:1 [spec] spec: Missing Data volume PVC
                hint: write `storage: {resources: {requests: {storage: 10Gi}}}`
            Error 4:1 [spec] spec: Data volume should have either Source or SourceRef, or be externally populated
                hint: an empty volume has `source: {blank: {}}`
            DataVolume/nothing: not valid
            Error 10:12 [blank] spec.source.blank: Multiple Data volume sources
                hint: `upload` is set, too
            Error 11:3 [sourceRef] spec.sourceRef: Data volume should have either Source or SourceRef, or be externally populated
            Error 12:3 [pvc] spec.pvc: Duplicate storage definition, both target storage and target pvc defined
            DataVolume/both: not valid
            Error 19:12 [blank] spec.source.blank: Multiple Data volume sources
                hint: `http` is set, too
            Error 19:35 [""] spec.source.http.url: source URL is empty
            Error 20:16 [archive] spec.contentType: SourceType cannot be blank and the contentType be archive
            Error 21:3 [pvc] spec.pvc.accessModes: Required value: at least 1 access mode is required
                hint: write `accessModes: [ReadWriteOnce]`
            Error 21:41 [500k] spec.pvc.resources.requests.storage: PVC size should be at least 1MiB
            DataVolume/sizes: not valid
            Error 27:52 ["sha255:00"] spec.source.http.checksum: Invalid checksum format: unknown digest algorithm `sha255`; expected md5, sha1, sha256 or sha512
            Error 28:16 [disk] spec.contentType: Unsupported value: "disk": supported values: "kubevirt", "archive"
            Error 29:23 [RWO] spec.pvc.accessModes[0]: Unsupported value: "RWO": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"
            Error 29:61 ["0"] spec.pvc.resources.requests.storage: PVC size can't be equal or less than zero
            DataVolume/zero: not valid
            Error 35:28 ["https://host/a"] spec.source.registry.url: Illegal registry source URL scheme https
                hint: expected docker:// or oci-archive:
            Error 35:58 [host] spec.source.registry.pullMethod: PullMethod "host" is neither pod nor node
            Error 36:45 [-1Gi] spec.storage.resources.requests.storage: PVC size can't be equal or less than zero
            DataVolume/registry: not valid
            DataVolume/clone: valid
            Error 51:35 [source] spec.template.spec.source: the source must be registry or pvc
            DataImportCron/cron: not valid
            Error 56:8 [source] spec.source: expected exactly one of pvc, snapshot and dataSource
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
                Error 1:1 [] : there is no object in it
            "#]],
        ),
        (
            "a: [",
            expect![[r#"
                Error 1:4 [[] : unclosed bracket '['
            "#]],
        ),
        (
            "- a\n",
            expect![[r#"
                Error 1:1 [-] : expected an object, got a list
                /: not valid
            "#]],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
            expect![[r#"
                Error 2:7 [Pod] kind: the kind Pod is not known here
                    hint: `bootyard explain` lists the kinds
                Pod/a: not valid
            "#]],
        ),
        (
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachines\n",
            expect![[r#"
                Error 2:7 [VirtualMachines] kind: the kind VirtualMachines is not known here
                    hint: did you mean `VirtualMachine`?
                VirtualMachines/: not valid
            "#]],
        ),
        (
            "apiVersion: v1\nkind: VirtualMachine\n",
            expect![[r#"
                Error 1:13 [v1] apiVersion: no matches for kind "VirtualMachine" in version "v1"
                    hint: write `kubevirt.io/v1`
                VirtualMachine/: not valid
            "#]],
        ),
        (
            "kind: Secret\n",
            expect![[r#"
                Error 1:1 [] apiVersion: Required value
                Error 1:1 [] metadata: Required value
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
    let said = said(text);
    assert!(!said.contains("hunter2"), "{said}");
    expect![[r#"
        Error 4:11 [] data.a: is not a valid base64 value
            hint: `stringData` takes text as it is
        Error 5:14 [] stringData.b: expected text, got a list
        Secret/s: not valid
    "#]]
    .assert_eq(&said);
}

#[test]
fn json_lists_anchors_and_several_documents_are_read() {
    let json = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"List\",\n\t\"items\": [\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"a\"}, \"data\": {\"k\": \"v\"}},\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"B\"}}\n\t]\n}\n";
    check(
        json,
        &expect![[r#"
            ConfigMap/a: valid
            Error 5:66 ["B"] metadata.name: Invalid value: "B": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character
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
            Error 10:36 [off] metadata.labels.true: expected text, got a boolean
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
            let name = path.file_name().expect("a name").display();
            all.push_str(&format!("== {name}\n{}", said(&text)));
        }
    }
    expect![[r#"
        == blank-image-datavolume.yaml
        DataVolume/blank-image-datavolume: valid
        == cert-configmap.yaml
        ConfigMap/tls-certs: valid
        == clone-block-datavolume.yaml
        DataVolume/clone-block-datavolume: valid
        == clone-datavolume.yaml
        Error 6:1 [spec] spec: Missing Data volume PVC
            hint: write `storage: {resources: {requests: {storage: 10Gi}}}`
        DataVolume/cloned-datavolume: not valid
        == endpoint-secret.yaml
        Secret/endpoint-secret: valid
        == example-cdiconfig.yaml
        Error 2:7 [CDIConfig] kind: the kind CDIConfig is not known here
            hint: `bootyard explain` lists the kinds
        CDIConfig/config: not valid
        == import-archive-block-datavolume.yaml
        DataVolume/import-archive-block-datavolume: valid
        == import-archive-datavolume.yaml
        DataVolume/import-archive-datavolume: valid
        == import-block-pv.yaml
        Error 1:7 [PersistentVolume] kind: the kind PersistentVolume is not known here
            hint: `bootyard explain` lists the kinds
        PersistentVolume/import-block-pv: not valid
        == import-kubevirt-block-datavolume.yaml
        DataVolume/import-kubevirt-block-datavolume: valid
        == import-kubevirt-datavolume-gcs-secret.yaml
        Secret/gcs-secret: valid
        == import-kubevirt-datavolume-gcs.yaml
        DataVolume/my-data-volume: valid
        == import-kubevirt-datavolume-secret.yaml
        DataVolume/my-data-volume: valid
        == import-kubevirt-datavolume-skip-tls.yaml
        DataVolume/my-data-volume: valid
        == import-kubevirt-datavolume.yaml
        DataVolume/my-data-volume: valid
        == registry-image-block-datavolume.yaml
        DataVolume/registry-image-datavolume: valid
        == registry-image-datavolume.yaml
        DataVolume/registry-image-datavolume: valid
        == upload-block-datavolume-token.yaml
        Error 2:7 [UploadTokenRequest] kind: the kind UploadTokenRequest is not known here
            hint: `bootyard explain` lists the kinds
        UploadTokenRequest/upload-block-datavolume-token: not valid
        == upload-block-datavolume.yaml
        DataVolume/upload-block-datavolume: valid
        == upload-datavolume-token.yaml
        Error 2:7 [UploadTokenRequest] kind: the kind UploadTokenRequest is not known here
            hint: `bootyard explain` lists the kinds
        UploadTokenRequest/upload-datavolume: not valid
        == upload-datavolume.yaml
        DataVolume/upload-datavolume: valid
        == vddk-args-annotation.yaml
        Error 10:9 [vddk] spec.source.vddk: the source vddk is not among those that this host imports
            hint: http, s3, gcs, registry, pvc, upload, blank
        DataVolume/vddk-dv: not valid
        == vddk-args-configmap.yaml
        ConfigMap/vddk-arguments: valid
        == vddk-args-field.yaml
        Error 7:9 [vddk] spec.source.vddk: the source vddk is not among those that this host imports
            hint: http, s3, gcs, registry, pvc, upload, blank
        DataVolume/vddk-dv: not valid
        == vddk-configmap.yaml
        ConfigMap/v2v-vmware: valid
        == vm-dv.yaml
        Warning 24:12 [false] spec.running: spec.running is deprecated, please use spec.runStrategy instead.
            hint: write `runStrategy: Halted`
        VirtualMachine/vm-cirros-datavolume: valid
        == vmi-nocloud.yaml
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
