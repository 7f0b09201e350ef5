-- title: Cost of scanning, by shape, role and device
-- about: Worker seconds over all scans, the most expensive row first. The work of decomposing a matrix is proportional to rows
--   cols min(rows, cols); rate is this work per second, so that devices can be compared over shapes.
-- param: model MODEL = NULL | this model only
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: rows | output features
-- column: cols | input features
-- column: role | role of the matrix in its block
-- column: device | device of the computation
-- column: svd_method | gram, or svd if the faster method was not accurate enough
-- column: matrices | number of matrices
-- column: seconds | seconds of all of them
-- column: percent | share of the seconds of all rows
-- column: median_seconds | median seconds of a matrix
-- column: largest_seconds | seconds of the slowest matrix
-- column: rate [1e9/s] | 10^9 rows cols min(rows, cols) per second
-- show: role, shape = rows x cols, device, svd_method, matrices, seconds, percent, median_seconds, rate
-- total: matrices, seconds, percent
select
    rows,
    cols,
    role,
    device,
    svd_method,
    count(*)::integer as matrices,
    sum(seconds) as seconds,
    100 * sum(seconds) / nullif(sum(sum(seconds)) over (), 0) as percent,
    median(seconds) as median_seconds,
    max(seconds) as largest_seconds,
    count(seconds) * 1e-9 * rows * cols * least(rows, cols) / nullif(sum(seconds), 0) as rate
from all_matrices
where ($model is null or model = $model) and ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
group by rows, cols, role, device, svd_method
order by sum(seconds) desc nulls last, rows, cols, role_order(role), role, device, svd_method;
