//! What the sandbox forbids and leaves, tried out in child processes: it cannot be left again.

#![expect(unsafe_code, reason = "child processes that try what is forbidden")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::time::Duration;

use super::*;

const EXIT_CODE: u8 = 67;
/// A child that hangs is killed after this many seconds.
const CHILD_SECONDS: u32 = 20;

/// How a child ended, and what it wrote to its standard error.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    said: String,
}

/// Runs `body` in a child process: 0 is the exit code at its end, 101 after a panic.
fn child(body: impl FnOnce()) -> Ended {
    // What other threads are about to make now, the child would wait for in vain.
    Role::ALL.into_iter().for_each(filter::prepare);
    let (mut reader, writer) = io::pipe().unwrap();
    // SAFETY: the child runs only what is here; glibc keeps its allocator usable after a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: both descriptors are open, and the child ends without running destructors.
        unsafe {
            libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO);
            libc::alarm(CHILD_SECONDS);
            let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            libc::_exit(if run.is_ok() { 0 } else { 101 });
        }
    }
    drop(writer);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    let mut status = 0;
    // SAFETY: waits for the child from above, of which nobody else knows.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    Ended { code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)), said }
}

fn options() -> Options {
    Options { exit_code: EXIT_CODE, ..Options::default() }
}

/// Enters the sandbox, starts a thread of `role` called `probe` and runs `body` there.
fn inside<T: Send + 'static>(
    options: &Options,
    role: Role,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    enter(options).unwrap();
    spawn(role, "probe".to_owned(), body).unwrap().join().unwrap()
}

/// Makes a system call with up to three arguments.
fn call(number: i64, arguments: [usize; 3]) -> i64 {
    let [a, b, c] = arguments;
    // SAFETY: the callers' calls reach no memory of this process, or are never made.
    unsafe { libc::syscall(number, a, b, c, 0, 0, 0) }
}

/// What no thread may.
const FORBIDDEN: [(i64, [usize; 3]); 10] = [
    (libc::SYS_execve, [0, 0, 0]),
    (libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0]),
    (libc::SYS_kill, [0, 0, 0]),
    (libc::SYS_setuid, [0, 0, 0]),
    (libc::SYS_mount, [0, 0, 0]),
    (libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0]),
    (libc::SYS_socket, [libc::AF_NETLINK as usize, libc::SOCK_RAW as usize, 0]),
    (libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0]),
    (libc::SYS_mmap, [0, 4096, (libc::PROT_EXEC | libc::PROT_READ) as usize]),
    // Input that a terminal's owner did not type.
    (libc::SYS_ioctl, [0, libc::TIOCSTI as usize, 0]),
];

#[test]
fn a_forbidden_call_ends_the_machine_and_is_named() {
    // The main thread's list is the widest, so that its ten stand for everybody's.
    for role in Role::ALL {
        let tried = if role == Role::Main { FORBIDDEN.len() } else { 1 };
        for (number, arguments) in FORBIDDEN.into_iter().take(tried) {
            let ended = child(|| {
                inside(&options(), role, move || call(number, arguments));
            });
            assert_eq!(ended.code, Some(EXIT_CODE.into()), "{role:?}: {number}: {ended:?}");
            let line = format!(
                "the machine was ended by its sandbox: system call {number} in thread `probe`\n"
            );
            assert!(ended.said.ends_with(&line), "{role:?}: {ended:?}");
        }
    }
}

#[test]
fn sockets_are_for_the_threads_that_need_them() {
    for (family, allowed) in [
        (libc::AF_INET, &[Role::Main, Role::Net][..]),
        (libc::AF_INET6, &[Role::Main, Role::Net]),
        (libc::AF_UNIX, &[Role::Main, Role::Net, Role::Socket, Role::Control]),
    ] {
        for role in Role::ALL {
            let ended = child(|| {
                let arguments = [family as usize, libc::SOCK_DGRAM as usize, 0];
                inside(&options(), role, move || call(libc::SYS_socket, arguments));
            });
            let expected = if allowed.contains(&role) { 0 } else { EXIT_CODE.into() };
            assert_eq!(ended.code, Some(expected), "{role:?}: {family}: {ended:?}");
        }
    }
}

#[test]
fn no_thread_opens_a_file_that_is_not_named() {
    for role in Role::ALL {
        let ended = child(|| {
            inside(&options(), role, || {
                for path in ["/etc/passwd", "/proc/self/environ", "/dev/kvm", "/"] {
                    let error = fs_err::File::open(path).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
                }
            });
        });
        assert_eq!(ended.code, Some(0), "{role:?}: {ended:?}");
    }
}

#[test]
fn every_thread_can_do_what_threads_do() {
    for role in Role::ALL {
        let ended = child(|| {
            inside(&options(), role, || {
                let memory = vec![1_u8; 64 << 20];
                assert_eq!(memory.iter().map(|byte| usize::from(*byte)).sum::<usize>(), 64 << 20);
                let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
                event.write(1).unwrap();
                assert_eq!(event.read().unwrap(), 1);
                std::thread::sleep(Duration::from_millis(1));
                let map: std::collections::HashMap<u8, u8> = [(1, 2)].into();
                io::stderr().write_all(format!("{map:?}").as_bytes()).unwrap();
                assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
            });
        });
        assert_eq!(ended.code, Some(0), "{role:?}: {ended:?}");
        assert!(ended.said.contains("{1: 2}"), "{role:?}: {ended:?}");
    }
}

/// A processor's thread sees the driver start a device whose thread may what its own may not.
#[test]
fn a_thread_starts_others_that_may_more() {
    let ended = child(|| {
        let socket = inside(&options(), Role::Processor, || {
            let arguments = [libc::AF_INET as usize, libc::SOCK_STREAM as usize, 0];
            let net = move || call(libc::SYS_socket, arguments);
            spawn(Role::Net, "net".to_owned(), net).unwrap().join().unwrap()
        });
        assert!(socket >= 0);
        let read = confined(Role::Reader, || "a guest's bytes".len()).unwrap();
        assert_eq!(read, 15);
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn what_is_named_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    // The user inside is another one.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs_err::set_permissions(folder.path(), everybody).unwrap();
    let (log, secret) = (folder.path().join("log"), folder.path().join("secret"));
    fs_err::create_dir(&log).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs_err::set_permissions(&log, everybody).unwrap();
    fs_err::write(&secret, "s").unwrap();
    let readable = Path::new("/etc/hostname").to_owned();
    let files = Files { readable: vec![readable.clone()], writable: vec![log.clone()] };
    let ended = child(|| {
        let options = Options { files, ..options() };
        inside(&options, Role::Control, move || {
            fs_err::write(log.join("a"), "1").unwrap();
            fs_err::rename(log.join("a"), log.join("b")).unwrap();
            fs_err::remove_file(log.join("b")).unwrap();
            fs_err::read_to_string(&readable).unwrap();
            assert!(fs_err::write(&readable, "x").is_err());
            assert!(fs_err::read_to_string(&secret).is_err());
            assert!(fs_err::write(folder.path().join("new"), "x").is_err());
        });
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn only_a_network_of_our_own_sockets_speaks_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for tcp in [false, true] {
        let ended = child(|| {
            let options = Options { tcp, ..options() };
            inside(&options, Role::Net, move || {
                assert_eq!(TcpStream::connect(address).is_ok(), tcp);
                assert_eq!(TcpListener::bind("127.0.0.1:0").is_ok(), tcp);
            });
        });
        assert_eq!(ended.code, Some(0), "{tcp}: {ended:?}");
    }
}

#[test]
fn a_machine_of_root_becomes_a_user_who_owns_nothing() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (mut reader, writer) = io::pipe().unwrap();
    let ended = child(|| {
        enter(&options()).unwrap();
        let own = [rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()];
        let mut writer = &writer;
        writeln!(writer, "{} {own:?}", std::process::id()).unwrap();
        // An undumpable process' own files are root's.
        assert!(fs_err::File::open("/proc/self/mem").is_err());
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let pid: u32 = text.split(' ').next().unwrap().parse().unwrap();
    let own = 0x7000_0000 + pid;
    let is_ours = text.ends_with(&format!("[{own}, {own}]\n"));
    assert!(is_ours || text.ends_with("[65534, 65534]\n"), "{text}: {ended:?}");
}

#[test]
fn a_process_that_has_threads_does_not_enter() {
    let ended = child(|| {
        let (_stop, wait) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || wait.recv());
        let error = enter(&options()).unwrap_err();
        assert_eq!(error.to_string(), "cannot enter the sandbox: entering it failed");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "2 threads run already");
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// Descriptors that were open before stay what they were.
#[test]
fn open_disks_stay_open() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"disk").unwrap();
    let number = file.as_raw_fd();
    let ended = child(|| {
        inside(&options(), Role::Disk, move || {
            // SAFETY: the child has inherited the descriptor, and nothing closes it.
            let file = unsafe { std::fs::File::from_raw_fd(number) };
            use std::os::unix::fs::FileExt;
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"disk");
            file.write_all_at(b"more", 4).unwrap();
            file.sync_data().unwrap();
        });
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
