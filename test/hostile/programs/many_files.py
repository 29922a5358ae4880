# Case 42: a directory of empty files, as many as asked for.
import os
import sys

os.mkdir("many")
for n in range(int(sys.argv[1])):
    os.close(os.open(f"many/{n}", os.O_CREAT | os.O_WRONLY))
print("made", n + 1)
