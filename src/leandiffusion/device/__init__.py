"""The machine's devices behind one set of questions: which there are, what each can do, how its work is ordered.

The only room that tells one type of accelerator from another. Built on `torch.accelerator`. Nothing is imported here.
"""
