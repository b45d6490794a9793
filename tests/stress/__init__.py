"""The scripts under torture: killed, starved, lied to. Each check is a row of one table; ``make stress`` runs all."""
