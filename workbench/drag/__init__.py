"""The drag methods: one loop, the numbers that distinguish the methods, tracking, denoising."""
