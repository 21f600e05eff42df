"""`python -m trainer.config > docs/config.md` writes the page of all fields again."""

from trainer.config.show import markdown

if __name__ == "__main__":
    print(markdown(), end="")
