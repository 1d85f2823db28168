// The page's texts in both languages.
export const languages = { en: "English", zh: "中文" };
const texts = {
  en: {
    board: "board", skip: "To the content", views: "Views", colours: "Colours", theme_auto: "system", theme_light: "light", theme_dark: "dark",
    counts: "runs {runs} · sweeps {sweeps} · running {live}", lost: "The board does not answer: is hydraft board still running?",
    view_runs: "Runs", view_curves: "Curves", view_configs: "Settings", view_answers: "Answers", view_memory: "Memory", view_logs: "Logs", view_run: "Run", view_sweep: "Sweep",
    leave_out: "leave out {name}", choose_none: "choose none", close: "Close", copy: "Copy", copied: "Copied", loading: "Reading …",
    state_queued: "queued", state_starting: "starting", state_running: "running", state_evaluating: "evaluating", state_saving: "saving",
    state_completed: "completed", state_failed: "failed", state_diverged: "diverged", state_stopped: "stopped", state_interrupted: "interrupted",
    state_pruned: "pruned", state_refused: "refused", state_unreadable: "unreadable",
    held_out_loss: "held-out loss", find: "find runs", find_hint: "name, state or setting=value", group: "group by sweep", columns: "columns",
    choose: "choose {name}", choose_all: "choose all that are shown", jobs: "{done} of {jobs} jobs", fold: "fold {name}",
    col_name: "run", col_state: "state", col_step: "step", col_loss: "loss", col_left: "left", col_speed: "tokens/s", col_peak: "memory", col_duration: "time", col_started: "started",
    on_host: "on {host}", none_found: "No run is found.", shown_of: "{shown} of {all} runs",
    empty_title: "No runs yet", empty_text: "Runs appear here as soon as they start. Start one in a terminal:", empty_where: "This board looks in {folders}.",
    notes_title: "Folders that are not shown as runs",
    newest: "No run is chosen, so these are the newest. Choose runs in the table to compare others.", nothing_chosen: "There is no run to show yet.",
    axis: "over", axis_step: "steps", axis_tokens: "tokens", axis_time: "training time", smooth: "smoothing", log: "log scale",
    title_loss: "Training loss", title_eval_loss: "Held-out loss", title_learning_rate: "Learning rate", title_grad_norm: "Gradient norm", title_tokens_per_second: "Tokens per second", title_epoch: "Epoch",
    x_step: "optimizer step", x_tokens: "tokens", x_time: "training time in seconds", no_curves: "Nothing is logged yet.", more_charts: "{count} more charts",
    diverged_at: "step {step}: {text}",
    only_differing: "only what differs", hide_defaults: "hide what no run changes", find_setting: "find a setting", setting: "setting", default: "default", no_settings: "These runs have the same settings.",
    first: "first", second: "second", before_after: "before and after training", only_different: "only different answers", question: "question", reference: "reference", at_step: "step {step}",
    before: "before training", after: "after training", no_answers: "There are no answers: a run with held-out records (data.eval) writes those to questions.", right: "{right} of {all} right", answers_differ: "{count} answers differ",
    planned: "planned", measured: "measured", not_measured: "not measured", no_plan: "The plan of this run has no memory (the size of its model is not known).",
    memory_gpu: "Memory of one GPU by phase: the plan, and the highest peak of a rank. Neither has the memory of the driver and of the allocator's unused blocks.",
    memory_cpu: "Main memory of one rank in training: the plan, and what was resident at the end. On a CPU there is no peak.",
    phase_loading: "loading", phase_training: "training", phase_scoring: "evaluation",
    part_weights: "weights", part_adapter: "adapter", part_gradients: "gradients", part_optimizer: "optimizer state", part_activations: "activations", part_logits: "logits", part_cache: "cache", part_buffers: "buffers", part_overhead: "libraries",
    run: "run", log_file: "log", follow: "follow", no_logs: "This run has no log yet.", cut: "Earlier lines are in {file}.", find_line: "show lines with",
    gone: "This run is no longer there.", command: "command", folder: "folder", resume_with: "resumed with", host: "host", scores: "Scores", best: "best", score: "score",
    changed_settings: "Settings other than the default", memory: "Memory", log_title: "Log", curves: "Curves", facts: "Facts", packages: "packages", commit: "commit", tokens: "tokens", parameters: "trained parameters",
    signal: "a signal ended it: {signal}", show_sweep: "sweep {name}", compare: "compare the jobs", full_report: "Results of {name}", step_of: "step {step} of {steps}", left_about: "about {time} left", checkpoints: "checkpoints",
    interrupted_text: "Its process ended without a result, or is on a machine that cannot be seen from here.", can_resume: "It can be resumed:",
  },
  zh: {
    board: "看板", skip: "跳到内容", views: "视图", colours: "颜色", theme_auto: "跟随系统", theme_light: "浅色", theme_dark: "深色",
    counts: "运行 {runs} · 扫参 {sweeps} · 进行中 {live}", lost: "看板没有响应：hydraft board 还在运行吗？",
    view_runs: "运行", view_curves: "曲线", view_configs: "设置", view_answers: "回答", view_memory: "内存", view_logs: "日志", view_run: "运行", view_sweep: "扫参",
    leave_out: "去掉 {name}", choose_none: "全部取消", close: "关闭", copy: "复制", copied: "已复制", loading: "读取中…",
    state_queued: "排队", state_starting: "启动中", state_running: "训练中", state_evaluating: "评测中", state_saving: "保存中",
    state_completed: "完成", state_failed: "失败", state_diverged: "发散", state_stopped: "已停止", state_interrupted: "中断",
    state_pruned: "剪枝", state_refused: "被拒绝", state_unreadable: "无法读取",
    held_out_loss: "留出集损失", find: "查找运行", find_hint: "名称、状态或 设置=值", group: "按扫参分组", columns: "列",
    choose: "选择 {name}", choose_all: "选择所有显示的运行", jobs: "{done} / {jobs} 个任务", fold: "折叠 {name}",
    col_name: "运行", col_state: "状态", col_step: "步", col_loss: "损失", col_left: "剩余", col_speed: "token/秒", col_peak: "内存", col_duration: "用时", col_started: "开始",
    on_host: "在 {host} 上", none_found: "没有找到运行。", shown_of: "{shown} / {all} 个运行",
    empty_title: "还没有运行", empty_text: "运行一开始就会出现在这里。在终端中启动一个：", empty_where: "看板读取 {folders}。",
    notes_title: "没有作为运行显示的文件夹",
    newest: "没有选择运行，这里是最新的几个。在表格中选择运行可以比较其他运行。", nothing_chosen: "还没有可以显示的运行。",
    axis: "横轴", axis_step: "步数", axis_tokens: "token", axis_time: "训练时间", smooth: "平滑", log: "对数刻度",
    title_loss: "训练损失", title_eval_loss: "留出集损失", title_learning_rate: "学习率", title_grad_norm: "梯度范数", title_tokens_per_second: "每秒 token 数", title_epoch: "轮数",
    x_step: "优化器步数", x_tokens: "token 数", x_time: "训练时间（秒）", no_curves: "还没有任何记录。", more_charts: "另外 {count} 张图",
    diverged_at: "第 {step} 步：{text}",
    only_differing: "只看不同的", hide_defaults: "隐藏没有改动的", find_setting: "查找设置", setting: "设置", default: "默认值", no_settings: "这些运行的设置相同。",
    first: "第一个", second: "第二个", before_after: "训练前后", only_different: "只看不同的回答", question: "问题", reference: "参考答案", at_step: "第 {step} 步",
    before: "训练前", after: "训练后", no_answers: "没有回答：有留出集（data.eval）的运行才会写出对问题的回答。", right: "{all} 个中 {right} 个正确", answers_differ: "{count} 个回答不同",
    planned: "预估", measured: "实测", not_measured: "未测得", no_plan: "这个运行的资源预估没有内存（模型大小未知）。",
    memory_gpu: "一块 GPU 在各阶段的内存：预估值，以及各 rank 中最高的峰值。两者都不含驱动和分配器的空闲块。",
    memory_cpu: "一个 rank 训练时的主内存：预估值，以及结束时的常驻内存。CPU 上没有峰值。",
    phase_loading: "加载", phase_training: "训练", phase_scoring: "评测",
    part_weights: "权重", part_adapter: "适配器", part_gradients: "梯度", part_optimizer: "优化器状态", part_activations: "激活", part_logits: "logits", part_cache: "缓存", part_buffers: "缓冲区", part_overhead: "程序库",
    run: "运行", log_file: "日志", follow: "跟随", no_logs: "这个运行还没有日志。", cut: "更早的行在 {file} 中。", find_line: "只显示含此文字的行",
    gone: "这个运行已不存在。", command: "命令", folder: "文件夹", resume_with: "续训命令", host: "主机", scores: "评测", best: "最佳", score: "指标",
    changed_settings: "与默认值不同的设置", memory: "内存", log_title: "日志", curves: "曲线", facts: "信息", packages: "软件包", commit: "提交", tokens: "token 数", parameters: "训练的参数",
    signal: "被信号结束：{signal}", show_sweep: "扫参 {name}", compare: "比较各任务", full_report: "{name} 的结果", step_of: "第 {step} / {steps} 步", left_about: "约剩 {time}", checkpoints: "检查点",
    interrupted_text: "进程没有写出结果就结束了，或者在本机看不到的另一台机器上。", can_resume: "可以续训：",
  },
};
let chosen = localStorage.getItem("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
if (!(chosen in texts)) chosen = "en";
export function language() { return chosen; }
export function setLanguage(name) { chosen = name; localStorage.setItem("language", name); }
export function addTexts(more) { for (const name of Object.keys(languages)) Object.assign(texts[name], more[name]); }
export function t(name, values = {}) {
  const text = texts[chosen][name] ?? texts.en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (whole, key) => (key in values ? String(values[key]) : whole));
}
