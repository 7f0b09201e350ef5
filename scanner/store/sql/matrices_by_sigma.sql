-- Rows of `matrices` of the chosen scans, with the numbers of values outside the bulk by the edges of any estimate of sigma, or (null) of
-- the one that a scan used. Estimates: `median`, `std`, `bulk`, `init` (the standard deviation of initial entries that the config names, or
-- else 1 / sqrt(rows)) and `init_rows` (1 / sqrt(rows)). Both numbers are null where there is no such estimate: where the fit of `bulk`
-- failed, or a version without its edges made the scan.
create macro matrices_by_sigma(wanted_sigma, wanted_model, wanted_revision) as table
with estimated as (
    select
        matrices.*,
        case
            when wanted_sigma is null then null
            when wanted_sigma = 'median' then sigma_median
            when wanted_sigma = 'std' then sigma_std
            when wanted_sigma = 'init' then coalesce(scans.initializer_range, sigma_init)
            when wanted_sigma = 'init_rows' then sigma_init
            when wanted_sigma != 'bulk'
                then error('sigma is ''' || wanted_sigma || ''': choose from median, std, init, init_rows, bulk')
        end as by_sigma
    from matrices
    semi join chosen_scans(wanted_model, wanted_revision) using (scan_id)
    join scans using (scan_id)
),

-- In a step of its own: an expression that can raise an error cannot be referred to where it is named.
chosen as (
    select
        *,
        case
            when wanted_sigma = 'bulk' then case sigma_kind when 'bulk' then mp_lower else bulk_lower end
            else by_sigma * (sqrt(greatest(rows, cols)) - sqrt(least(rows, cols)))
        end as by_lower,
        case
            when wanted_sigma = 'bulk' then case sigma_kind when 'bulk' then mp_upper else bulk_upper end
            else by_sigma * (sqrt(greatest(rows, cols)) + sqrt(least(rows, cols)))
        end as by_upper
    from estimated
),

counted as (
    select
        vectors.scan_id,
        vectors.tensor,
        vectors.role,
        vectors.head,
        vectors.expert,
        count(*) filter (where vectors.singular_value < chosen.by_lower) as by_left,
        count(*) filter (where vectors.singular_value > chosen.by_upper) as by_right
    from vectors
    semi join chosen_scans(wanted_model, wanted_revision) using (scan_id)
    join chosen
        on chosen.scan_id = vectors.scan_id and same_matrix(chosen, vectors)
    where wanted_sigma is not null and vectors.region != 'null' and chosen.by_upper is not null
    group by all
)

select
    chosen.* exclude (by_sigma, by_lower, by_upper) replace (
        case
            when wanted_sigma is null then outliers_left
            when by_upper is not null then coalesce(by_left, 0)::integer
        end as outliers_left,
        case
            when wanted_sigma is null then outliers_right
            when by_upper is not null then coalesce(by_right, 0)::integer
        end as outliers_right
    )
from chosen
left join counted
    on counted.scan_id = chosen.scan_id and same_matrix(counted, chosen);
