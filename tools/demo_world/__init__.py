"""The world of the packaged model: scenes of coloured shapes, drawn at random to train it, and read back to judge it.

`shapes` says what the six shapes are, `layout` where they stand, `scenes` draws scenes and captions at random, `render`
paints them. `pixels` reads colour, shape, size and place back from a picture, `verify` compares them with what a prompt
asked for, `score` sums that up over many prompts. Needs numpy only.
"""
