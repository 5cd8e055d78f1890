"""Push boxes onto targets: generated rooms, and Boxoban's levels."""
