"""Which settings for this machine: peak memory and time of a call, predicted from shapes before a weight is read."""
