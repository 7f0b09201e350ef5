-- Mean singular value by role and decile (1 = the smallest) of one model's newest scan.
select
    role,
    10 - (10 * k) // least(rows, cols) as decile,
    avg(singular_value) as singular_value
from vectors
semi join chosen_scans($model, null) using (scan_id)
where head is null and layer is not null
group by role, decile
order by role_order(role), role, decile;
