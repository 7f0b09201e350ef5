-- Mean singular value by decile (1 = smallest) of the matrices of a run, by their roles and layers, if a scan has all of them.
select roles, layers, decile, singular_value
from scanned_deciles(null, $run, null)
order by roles, layers, decile;
