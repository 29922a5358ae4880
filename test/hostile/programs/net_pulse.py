# A neighbour: asks an allowed host again and again, and says how long that took.
import http.client
import sys
import time

host, seconds = sys.argv[1], float(sys.argv[2])
took, failed = [], 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    start = time.monotonic()
    try:
        c = http.client.HTTPConnection(host, timeout=20)
        c.request("GET", "/")
        if b"reached" not in c.getresponse().read():
            failed += 1
        c.close()
    except OSError as e:
        print("failed", e)
        failed += 1
    took.append(time.monotonic() - start)
    time.sleep(0.01)
took.sort()
print("requests", len(took), "failed", failed, "p99 %.1f" % (took[len(took) * 99 // 100] * 1000), "median %.1f" % (took[len(took) // 2] * 1000))
