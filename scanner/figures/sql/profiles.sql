-- p_local along the spectrum by role, in `bins` equal parts: averaged over the ranks of a matrix, then over the blocks. Column
-- `block` is the highlighted layer.
with control as (
    select
        rows,
        cols,
        ((k * $bins) // least(rows, cols))::integer as bin,
        avg(if($side = 'u', u_p_local, v_p_local)) as control
    from controls
    group by rows, cols, bin
),

measured as (
    select
        role,
        layer,
        rows,
        cols,
        ((k * $bins) // least(rows, cols))::integer as bin,
        avg(if($side = 'u', u_p_local, v_p_local)) as p_local
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where
        layer is not null
        and head is null
        and ($role is null or role = $role)
        and ($stack is null or stack = $stack)
    group by role, layer, tensor, expert, rows, cols, bin
)

select
    measured.role,
    measured.bin,
    count(distinct measured.layer)::integer as blocks,
    avg(measured.p_local) as mean,
    quantile_cont(measured.p_local, 0.1) as low,
    quantile_cont(measured.p_local, 0.9) as high,
    avg(measured.p_local) filter (where measured.layer = $layer) as block,
    avg(control.control) as control
from measured
left join control using (rows, cols, bin)
group by measured.role, measured.bin
order by role_order(measured.role), measured.role, measured.bin;
