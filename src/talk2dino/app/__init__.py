"""The web app: a picture, words, and what is where; see docs/app.md."""
