"""Side-by-side measurements; run with ``make bench``. They need the ``bench`` extra and are not part of CI."""
