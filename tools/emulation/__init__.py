"""Kernels of another processor, called from here: built for it, and run by a small program under an emulator."""
