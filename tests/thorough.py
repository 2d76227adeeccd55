"""The tests that only .ci/run runs, because they take the most time. Every room keeps tests in the quick set.

Files are listed by name, single tests as "file:test". Tests marked slow are in neither set.
"""

from __future__ import annotations

FILES = {
    "test_learning", "test_learning_pixels", "test_ray_workers", "test_devices", "test_loop", "test_bad_input",
    "test_masks", "test_make_env", "test_step_cost", "test_any_spaces", "test_safe_start", "test_priorities",
    "test_wheel", "test_convolutions", "test_worker_faults", "test_killed_runs", "test_device_rows",
    "test_flipped_bits", "test_sizes", "test_init_statistics", "test_haiku", "test_rows_on_disk", "test_golden_agent",
    "test_scan", "test_gaussian_latents", "test_crafted_files", "test_uninvited_pickles", "test_check",
    "test_evaluate", "test_parallel", "test_evaluation_workers", "test_library", "test_suites", "test_benchmarks",
    "test_report_page",
    "test_notebook",
    "test_docs", "test_learning_own_parts", "test_population", "test_population_devices", "test_fused_devices",
    "test_jax_suites", "test_sweep_runs", "test_sweep_on_ray", "test_contrastive_runs", "test_world_models_2018",
    "test_offline_behaviors",
}  # fmt: skip
TESTS = {
    "test_contrastive:test_the_loss_of_the_source",
    "test_contrastive:test_updates_scanned_and_vmapped_over_seeds_are_those_of_a_loop_over_each",
    "test_fused:test_the_host_makes_the_same_run_from_the_same_draws",
    "test_fused:test_a_resumed_run_is_the_same_to_the_last_bit",
    "test_fused:test_the_host_resumes_a_run_of_the_device",
    "test_fused:test_the_program_does_not_copy_the_ring",
    "test_fused:test_one_program_makes_any_number_of_turns",
    "test_several_updates:test_updates_in_one_call_are_those_of_single_calls_to_the_last_bit",
    "test_wandb:test_each_member_of_a_population_is_a_run_of_the_group",
    "test_wandb:test_a_stopped_run_goes_on_as_the_same_run_there",
    "test_several_updates:test_several_devices_make_the_same_updates_in_one_call",
    "test_pipeline:test_the_host_is_busy_while_the_device_makes_turns_but_checkpoints_and_evaluations_wait",
    "test_device_evaluation:test_all_evaluations_of_a_population_compile_one_program",
    "test_golden_nets:test_each_block_of_deter_fills_its_own_slice_of_the_start_grid",
    "test_golden_nets:test_encoder_of_both",
    "test_golden_nets:test_encoder_of_images",
    "test_golden_nets:test_decoder_of_images",
    "test_agent:test_state_keeps_its_form",
    "test_agent:test_bfloat16_types_with_images",
    "test_agent:test_updates_scanned_and_vmapped_over_seeds_are_those_of_a_loop_over_each",
    "test_agent:test_update_with_every_kind_of_observation_and_action",
    "test_agent:test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32",
    "test_agent:test_bfloat16_losses_are_near_those_of_float32",
    "test_agent:test_behavior_is_deterministic_in_mode_and_random_in_sample",
    "test_agent:test_report_gives_truth_and_dream_of_every_key_in_its_units",
    "test_agent:test_report_observes_the_first_half_and_only_dreams_the_rest",
    "test_agent:test_report_dreams_under_the_true_actions",
    "test_population_axes:test_an_axis_changes_what_a_member_learns_or_is_refused",
    "test_families:test_a_population_learns_as_each_member_would_alone",
    "test_silent_bugs:test_two_devices_make_the_update_of_one",
    "test_population_updates:test_the_program_of_all_makes_the_updates_of_each",
    "test_population_host:test_an_environment_written_in_jax_can_be_trained_on_the_host",
    "test_population_host:test_members_that_are_updated_together_collect_the_same",
    "test_population_host:test_a_member_can_be_resumed_alone",
    "test_population_host:test_members_inherit_what_others_have_learned_and_a_resume_repeats_it",
    "test_population_host:test_the_programs_of_all_members_are_compiled_once",
    "test_presets:test_a_preset_holds_differences_only",
    "test_presets:test_a_size_laid_over_a_preset_wins",
    "test_resume:test_a_run_whose_environment_hangs_ends_in_seconds_when_asked_to",
    "test_golden_rssm:test_filtering_with_forced_samples",
    "test_golden_rssm:test_filtering_with_discrete_actions",
    "test_start:test_the_command_answers_as_ever",
    "test_glossary:test_every_metric_of_an_update_of_dreamers_own_agent_has_an_entry_of_its_own",
    "test_glossary:test_every_metric_of_a_run_has_an_entry",
    "test_glossary:test_no_entry_is_dead",
    "test_data:test_a_run_directory_is_read_and_exported_to_minari",
    "test_offline:test_killed_a_few_times_it_ends_bit_identical",
    "test_several_hosts:test_several_processes_learn_the_parameters_of_one_with_the_same_batches",
    "test_several_hosts:test_a_run_goes_on_with_another_number_of_processes",
    "test_several_hosts:test_a_run_of_which_one_process_is_killed_ends_bit_identical",
    "test_several_hosts:test_a_signal_to_one_process_saves_the_run_and_stops_all",
    "test_several_hosts:test_processes_with_different_settings_are_refused_before_anything_is_written",
    "test_check_self_resets:test_an_environment_that_resets_itself_inside_step_is_found",
}


def is_thorough(file: str, test: str) -> bool:
    """Whether a test (without its parameters) is left out of the quick set."""
    return file in FILES or f"{file}:{test}" in TESTS
