-- Histograms of the singular values by role, in bins of `width` from zero on, of the whole matrices of one model: the number of
-- values in each bin, together in all matrices of the role. Values beyond the last bin are in bin `bins`.
select
    role,
    least(floor(singular_value / $width), $bins)::integer as bin,
    count(*)::integer as counted,
    sum(count(*)) over (partition by role)::integer as total
from vectors
semi join chosen_scans($model, $revision) using (scan_id)
where
    head is null
    and layer is not null
    and ($role is null or role = $role)
    and stack is not distinct from $stack
group by role, bin
order by role_order(role), role, bin;
