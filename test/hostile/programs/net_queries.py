# Case 27, of names: as many questions as there can be, each about another name,
# some of them at once.
import os
import sys
import time
from attempts import *

zone, count = sys.argv[1], int(sys.argv[2])
here, asked, answered = resolver(), 0, 0
end = time.monotonic() + 10
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect((here, 53))
    s.setblocking(False)
    while asked < count and time.monotonic() < end:
        for _ in range(50):
            try:
                s.send(question(f"{os.urandom(16).hex()}.{zone}", 1 if asked % 2 else 28))
                asked += 1
            except OSError:
                break
        try:
            while True:
                answered += answers(s.recv(4096)) > 0
        except OSError:
            pass
print("tried", asked, "questions")
if answered:
    print("FINDING", answered, "answers")
