"""What the doctor says of the right loss and of the five faulty ones: `python -m examples.faulty_losses`."""

from examples.faulty_losses import FAULTY, right
from likely.doctor import examine

for loss in (right, *FAULTY):
    found = examine(loss)
    print(f"{loss.__name__}: {', '.join(found.failed) or 'nothing'} failed")
    for name in found.failed:
        print(f"    {name}: {found[name].reason}")
