"""`python -m damselfly` is the `damselfly` command."""

from damselfly.cli import main

if __name__ == "__main__":
    main()
