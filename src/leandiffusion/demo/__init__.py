"""The shipped demonstration model's world: coloured shapes on plain backgrounds.

`shapes` says what the six shapes are, `scenes` draws scenes and captions at random, `render` paints them, and `verify`
reads colour, shape, size and relation back from pixels. Needs numpy only.
"""
