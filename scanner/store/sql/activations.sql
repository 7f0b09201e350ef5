-- Matrices of one selected run over activations, or (null) every matrix in its newest run, of the newest revision of a model.
-- Unfinished runs come after finished ones. `semi join chosen_activations($model, $run) using (run_id, tensor, role)`.
create macro chosen_activations(wanted_model, wanted_run) as table
select run_id, tensor, role
from (select distinct run_id, model, revision, tensor, role from "overlaps")
left join (select run_id, finished_at from experiments) using (run_id)
where (wanted_model is null or model = wanted_model) and (wanted_run is null or run_id = wanted_run)
qualify
    row_number() over (partition by model, tensor, role order by finished_at desc nulls last, run_id desc) = 1
    and revision is not distinct from first_value(revision) over (
        partition by model
        order by finished_at desc nulls last, run_id desc
    );

-- Overlaps of these matrices, centered or not, of one role or all (null).
create macro chosen_overlaps(wanted_model, wanted_run, wanted_role, wanted_centred) as table
select *
from "overlaps"
semi join chosen_activations(wanted_model, wanted_run) using (run_id, tensor, role)
where centred = wanted_centred and (wanted_role is null or role = wanted_role);
