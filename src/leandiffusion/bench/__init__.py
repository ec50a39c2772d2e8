"""`leandiffusion bench`: what each technique does to time, memory and the picture, measured on the user's machine.

`suites` say which rows there are and what is shown of them. `run` lets a fresh process draw each row in each round;
`peers` are other programs that draw the same work. `record` is the file that outcomes go to; `report` draws tables,
plots and comparisons from it.
"""
