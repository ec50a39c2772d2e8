"""`leandiffusion bench`: what each technique does to time, memory and the picture, measured on the user's machine.

`suites` says which rows there are, `runner` lets a fresh process draw each row in each round (`worker`), `record` is
the file they go to, `tables`, `plots` and `compare` read it. Other programs that draw the same work are `peers`.
"""
