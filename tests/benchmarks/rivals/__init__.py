"""Other ways to make the same model calls; each is a process that `workload.rival` starts."""
