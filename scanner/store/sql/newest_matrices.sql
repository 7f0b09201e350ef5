-- Newest results, which queries read. Scans whose results are all the newest are read whole, without a join; scans whose results
-- are all superseded are not read.
create view matrices as
from files.whole_matrices
union all by name
from not_superseded('files.partly_matrices');
