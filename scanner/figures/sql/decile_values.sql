-- Mean singular value by decile (1 = the smallest) of the matrices that the deciles of a run were taken from, by their roles and
-- layers, where a scan has all of them.
select roles, layers, decile, singular_value
from scanned_deciles(null, $run, null)
order by roles, layers, decile;
