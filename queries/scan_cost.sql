-- title: What scanning cost, by shape, role and device
-- about: Seconds of workers, over all scans, the costliest line first. Decomposing a matrix takes work proportional to
--   rows cols min(rows, cols); rate is how much of that was done in a second, so it compares devices over shapes.
-- param: model VARCHAR = NULL | only this model
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: rows | output features
-- column: cols | input features
-- column: role | what the matrix does in its block
-- column: device | where it was computed
-- column: svd_method | gram, or svd where the faster way was not accurate enough
-- column: matrices | matrices computed
-- column: seconds | of all of them together
-- column: percent | share of the seconds of all lines
-- column: median_seconds | of one matrix
-- column: largest_seconds | of the slowest matrix
-- column: rate | 10^9 rows cols min(rows, cols) per second
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
where ($model is null or model = $model) and ($role is null or role = $role) and (head is not null) = $heads
group by rows, cols, role, device, svd_method
order by sum(seconds) desc nulls last, rows, cols, role_order(role), role, device, svd_method;
