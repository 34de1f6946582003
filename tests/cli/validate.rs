//! `bootyard validate` and `bootyard explain`.

use bootyard_testkit::Cli;
use expect_test::expect;

use crate::check;

const WRONG: &str = "\
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: web}
spec:
  RunStrategy: Always
  template:
    spec:
      domain:
        devices:
          disks: [{name: root, disk: {bus: virtio}}]
      volumes:
      - {name: root, emptyDisk: {capacity: 1Gi}}
";

#[test]
fn all_problems_are_shown_with_their_lines_and_the_exit_code_says_so() {
    let cli = Cli::from_env();
    fs_err::write(cli.work().join("vm.yaml"), WRONG).unwrap();
    check(
        &cli,
        &["validate", "-f", "vm.yaml"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----
        vm.yaml:5:3: error: spec.RunStrategy: unknown field `RunStrategy`
        5 |   RunStrategy: Always
          |   ^^^^^^^^^^^
          hint: did you mean `runStrategy`?
        vm.yaml:8:7: error: spec.template.spec.domain.memory.guest: no memory requested, at least one of memory.guest, memory.hugepages.size or resources.requests.memory must be set
        8 |       domain:
          |       ^^^^^^
          hint: write `memory: {guest: 1Gi}` under `domain`
        ----- stderr -----
        1 file checked: 2 errors, 0 warnings"#]],
    );
    check(
        &cli,
        &["validate", "-f", "vm.yaml", "--json"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----
        [{"file":"vm.yaml","kind":"VirtualMachine","name":"web","severity":"error","field":"spec.RunStrategy","line":5,"column":3,"message":"unknown field `RunStrategy`","hint":"did you mean `runStrategy`?"},{"file":"vm.yaml","kind":"VirtualMachine","name":"web","severity":"error","field":"spec.template.spec.domain.memory.guest","line":8,"column":7,"message":"no memory requested, at least one of memory.guest, memory.hugepages.size or resources.requests.memory must be set","hint":"write `memory: {guest: 1Gi}` under `domain`"}]
        ----- stderr -----
        1 file checked: 2 errors, 0 warnings"#]],
    );
}

#[test]
fn a_folder_is_checked_and_warnings_fail_where_one_says_so() {
    let cli = Cli::from_env();
    let folder = cli.work().join("vms");
    fs_err::create_dir(&folder).unwrap();
    check(
        &cli,
        &["validate", "-f", "vms"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: no manifest is in `vms`
        hint: expected files whose names end in .yaml, .yml or .json"#]],
    );
    let deprecated = WRONG
        .replace("RunStrategy: Always", "running: true")
        .replace("devices:", "memory: {guest: 1Gi}\n        devices:");
    fs_err::write(folder.join("a.yml"), deprecated).unwrap();
    fs_err::write(folder.join("notes.txt"), "none").unwrap();
    check(
        &cli,
        &["validate", "-f", "vms"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        vms/a.yml:5:12: warning: spec.running: spec.running is deprecated, please use spec.runStrategy instead.
        5 |   running: true
          |            ^^^^
          hint: write `runStrategy: Always`
        ----- stderr -----
        1 file checked: 0 errors, 1 warning"#]],
    );
    check(
        &cli,
        &["validate", "--strict", "-f", "vms"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----
        vms/a.yml:5:12: warning: spec.running: spec.running is deprecated, please use spec.runStrategy instead.
        5 |   running: true
          |            ^^^^
          hint: write `runStrategy: Always`
        ----- stderr -----
        1 file checked: 0 errors, 1 warning"#]],
    );
    check(
        &cli,
        &["validate", "-f", "nowhere.yaml"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: failed to open file `nowhere.yaml`: No such file or directory (os error 2)"#]],
    );
}

#[test]
fn a_field_is_explained() {
    let cli = Cli::from_env();
    check(
        &cli,
        &["explain", "vmi.spec.domain.cpu"],
        &expect![[r#"
        exit code: 0
        ----- stdout -----
        KIND:     VirtualMachineInstance
        VERSION:  kubevirt.io/v1
        FIELD:    cpu <Cpu>

        DESCRIPTION:
            The processors.

        FIELDS:
          cores <a whole number>
            Cores of a socket; 1 if absent.
          sockets <a whole number>
            Sockets; 1 if absent.
          maxSockets <anything, without effect here>
            Sockets that can be plugged in later.
          threads <a whole number>
            Threads of a core; 1 if absent.
          model <text>
            What the processors can do: `host-passthrough`, `host-model` or a model of QEMU's.
          features <list of CpuFeature>
            Single features of the processors.
          dedicatedCpuPlacement <anything, without effect here>
            For the scheduler of a cluster.
          numa <anything, without effect here>
            For hosts with several memories.
          isolateEmulatorThread <anything, without effect here>
            For the scheduler of a cluster.
          realtime <anything, without effect here>
            For the scheduler of a cluster.
        ----- stderr -----
    "#]],
    );
    check(
        &cli,
        &["explain", "vm.spec.template.spec.volume"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: `VirtualMachine.spec.template.spec` has no field `volume`
        hint: did you mean `volumes`?"#]],
    );
}
