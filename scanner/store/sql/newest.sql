-- Results of scans that a newer scan has partly repeated, without the repeated matrices.
create macro not_superseded(results) as table
select result.*
from query_table(results) as result
anti join files.superseded as old
    on old.scan_id = result.scan_id and same_matrix(old, result);
