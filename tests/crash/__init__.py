"""Loss of power and full disks, simulated: what a run promises holds after every one of them."""
