# Case 37: what a program may do to the agent, PID 1. Each line is a success.
import ctypes
import os
import signal

libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, f):
    try:
        got = f()
    except (OSError, PermissionError, ValueError):
        return
    if got not in (-1, None, False):
        print("FINDING", name, got)


def killed(sig):
    os.kill(1, sig)
    return True


def vm(call):
    buf = ctypes.create_string_buffer(64)
    vec = (ctypes.c_void_p * 2)(ctypes.addressof(buf), 64)
    far = (ctypes.c_void_p * 2)(0x400000, 64)
    return libc.syscall(call, 1, vec, 1, far, 1, 0)


for sig in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV, 0):
    attempt(f"kill {sig}", lambda: killed(sig))
attempt("ptrace attach", lambda: libc.ptrace(16, 1, 0, 0) == 0)
attempt("ptrace seize", lambda: libc.ptrace(0x4206, 1, 0, 0) == 0)
attempt("process_vm_readv", lambda: vm(310))
attempt("process_vm_writev", lambda: vm(311))
for fd in range(8):
    attempt(f"fd {fd} for writing", lambda: os.open(f"/proc/1/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK))
    attempt(f"fd {fd} for reading", lambda: os.open(f"/proc/1/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK))
attempt("mem", lambda: os.open("/proc/1/mem", os.O_RDWR))
attempt("environ", lambda: open("/proc/1/environ", "rb").read())
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("pidfd_getfd", lambda: libc.syscall(438, os.pidfd_open(1), 0, 0))
attempt("agent replaced", lambda: os.rename("/.firebreak/firebreak-guest", "/tmp/agent"))
attempt("agent written", lambda: os.open("/.firebreak/firebreak-guest", os.O_WRONLY))
attempt("setpriority", lambda: os.setpriority(os.PRIO_PROCESS, 1, 19) is None)
attempt("prlimit", lambda: libc.prlimit(1, 7, ctypes.create_string_buffer(b"\0" * 16, 16), None) == 0)
# A reply, an exit and a result in the agent's name, on the only stream there is.
frame = bytes.fromhex("fb1e012a00000001000000020000000000007b7d")
os.write(1, frame)
os.write(2, frame)
with open(os.environ["FIREBREAK_RESULT"], "w") as f:
    f.write('{"forged": NaN, "forged": 1}')
print("tried")
