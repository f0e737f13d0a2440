"""Roots of Debian in a folder: `debian` lays them out, `inside` runs commands in them, `dockerfile` builds an image."""
