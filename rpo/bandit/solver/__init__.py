"""How one maximin is solved: the saddle, two convex programs, Newton's method, the certificate."""
