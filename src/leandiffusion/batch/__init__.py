"""Many pictures of a list: each drawn once, under a name that follows from what decides its pixels."""
