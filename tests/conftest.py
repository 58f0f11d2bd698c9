"""Two threads: the tests are made for two cores, and torch's many threads only get in each other's way there."""
import torch

torch.set_num_threads(2)
