# Cases 41, 42, 43: a directory of artifacts that attacks whoever collects it.
import io
import os
import sys
import zipfile

os.makedirs("out/sub", exist_ok=True)
os.chdir("out")


def put(name, data=b"data", mode=0o644):
    try:
        with open(name, "wb") as f:
            f.write(data)
        os.chmod(name, mode)
    except OSError as e:
        print("not made:", ascii(name), e)


put("good.txt")
put("sub/good.txt")
put("setuid", mode=0o6777)
put("-rf")
put("back\\slash")
put("..dots..")
put("CASE")
put("case")
for name in ("ansi\x1b[2J", "osc\x1b]52;c;cm0gLXJmIC8K\a", "bidi\u202egpj.exe", "new\nline", "ret\rurn", "sep\u2028", "c1\u009b31m"):
    put(name)
put(b"\xff\xfe")
for name, target in {"link": "/etc/passwd", "up": "../../../../etc/passwd", "outside": "/", "dangling": "nowhere"}.items():
    os.symlink(target, name)
os.symlink("/tmp", "through")  # and then a file below it
os.mkfifo("fifo")
with open("sparse", "wb") as f:
    f.truncate(1 << 40)
deep = "deep"
for _ in range(80):
    deep += "/d"
os.makedirs(deep)
put(deep + "/bottom")
# Archives in archives: nobody opens them.
data = bytes(1 << 20)
for level in range(4):
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w", zipfile.ZIP_DEFLATED) as z:
        for k in range(16):
            z.writestr(f"{level}-{k}.zip", data)
        z.writestr("../../escape", b"escape")
    data = b.getvalue()
put("42.zip", data)
for k in range(int(sys.argv[1])):
    open(f"sub/empty-{k}", "w").close()
