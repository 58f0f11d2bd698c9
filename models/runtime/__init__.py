"""Runtime: device and precision, processes, compiling, checkpoints, files, how a script starts and ends."""
