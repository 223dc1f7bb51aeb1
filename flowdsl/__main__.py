"""`python -m flowdsl` does what the command `flowdsl` does."""

from flowdsl.cli import main

if __name__ == "__main__":
    main()
