"""`python -m microdiffusion_fast`."""

from microdiffusion_fast.cli import main

if __name__ == "__main__":
    main()
