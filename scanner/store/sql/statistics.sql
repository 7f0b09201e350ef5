-- 97.5 % quantile of Student's t, which half the width of a two-sided 95 % interval is a multiple of: the normal quantile z and an
-- expansion in 1/df (Abramowitz and Stegun 26.7.5), right to 1.2 % from 2 degrees of freedom on and to 0.1 % from 4 on. Below 2 it is
-- that of one degree of freedom, which is too large.
create macro t_quantile(df) as
    case when df < 2 then 12.706204736174694 else (
        with normal as (select 1.959963984540054::double as z, 1.0 / df as inverse)
        select
            z
            + inverse * z * (z * z + 1) / 4
            + inverse ** 2 * z * ((5 * z * z + 16) * z * z + 3) / 96
            + inverse ** 3 * z * (((3 * z * z + 19) * z * z + 17) * z * z - 15) / 384
            + inverse ** 4 * z * ((((79 * z * z + 776) * z * z + 1482) * z * z - 1920) * z * z - 945) / 92160
        from normal
    ) end;

-- Degrees of freedom of a sum of two independent variances that were estimated with df_1 and df_2 (Welch and Satterthwaite); a variance
-- of zero does not count.
create macro welch(variance_1, df_1, variance_2, df_2) as
    (variance_1 + variance_2) ** 2 / nullif(
        case when variance_1 > 0 then variance_1 ** 2 / df_1 else 0 end
        + case when variance_2 > 0 then variance_2 ** 2 / df_2 else 0 end, 0
    );

-- Lists of the same length as vectors.
create macro centered(x) as list_transform(x, lambda v: v - list_avg(x));
create macro without_part(x, y) as
    -- x without its projection on y
    list_transform(
        list_zip(x, y),
        lambda pair: pair[1] - coalesce(list_dot_product(x, y) / nullif(list_dot_product(y, y), 0), 0) * pair[2]
    );
-- null if a list is constant; a remainder of rounding errors counts as zero.
create macro list_cosine(x, y) as
    case
        when list_dot_product(x, x) > 1e-9 and list_dot_product(y, y) > 1e-9
            then list_dot_product(x, y) / sqrt(list_dot_product(x, x) * list_dot_product(y, y))
    end;
-- Permutations of 1 to 10, the same in every process; one row each.
create macro permutations_of_ten(many) as table
select
    draw,
    list(place order by md5(draw || ' ' || place)) as permutation
from range(many) as draws (draw)
cross join range(1, 11) as places (place)
group by draw;

-- Variance of the mean sum(x) / sum(w) of windows with weights w: linearization, as for the column `stderr`.
create macro window_variance(x, w) as
    (
        with centre as (select list_sum(x) / list_sum(w) as mean)
        select
            len(x) / nullif(len(x) - 1, 0)
            * list_sum(list_transform(list_zip(x, w), lambda pair: (pair[1] - mean * pair[2]) ** 2)) / list_sum(w) ** 2
        from centre
    );
