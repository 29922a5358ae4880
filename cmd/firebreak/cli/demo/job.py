import firebreak

primes = [n for n in range(2, 10000) if all(n % d for d in range(2, int(n**0.5) + 1))]
print(len(primes), "primes below 10000")
with open("primes.txt", "w") as f:
    f.write("\n".join(map(str, primes)))
firebreak.result({"count": len(primes), "largest": primes[-1]})
