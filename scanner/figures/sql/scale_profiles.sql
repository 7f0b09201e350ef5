-- p under three hypotheses along the spectrum of the matrices of one role, in `bins` equal parts: averaged over the ranks of a
-- matrix, and then over the matrices. `low` and `high` hold the middle 80 % of the matrices.
with measured as (
    select
        tensor,
        expert,
        ((k * $bins) // least(rows, cols))::integer as bin,
        avg(if($side = 'u', u_p, v_p)) as p,
        avg(if($side = 'u', u_p_scale, v_p_scale)) as p_scale,
        avg(if($side = 'u', u_p_within, v_p_within)) as p_within
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where
        role = $role
        and module is not distinct from $module
        and stack is not distinct from $stack
        and head is not distinct from $head
        and ($layer is null or layer = $layer)
        and ($tensor is null or tensor = $tensor)
        and u_p_scale is not null
    group by tensor, expert, bin
)

select
    bin,
    count(*)::integer as matrices,
    avg(p) as p,
    quantile_cont(p, 0.1) as low,
    quantile_cont(p, 0.9) as high,
    avg(p_scale) as p_scale,
    quantile_cont(p_scale, 0.1) as low_scale,
    quantile_cont(p_scale, 0.9) as high_scale,
    avg(p_within) as p_within
from measured
group by bin
order by bin;
