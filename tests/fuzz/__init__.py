"""Fuzzing what strangers' bytes come to first: `python -m fuzz NAME` in this folder's parent.

- `targets`: one function for each reader, which takes any bytes. It raises for what must not
  happen: an exception other than the peer's fault, or more kept than the bounds say.
- `corpus/NAME/`: inputs that reach something new; what a run finds is added here.
- `__main__`: atheris around a target (`make fuzz`). pytest runs the corpus without it
  (`test_fuzz.py`).
"""
