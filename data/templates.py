"""Templates of passages, news and bilingual sentences.

A slot such as ``{p1}`` is replaced by a word of the list ``p`` of the lexicon; digits distinguish several words of one
list. Translation templates also specify a form: ``{st.1}`` is the first English form of the word chosen for ``{st}``.
"""

# passage | question > answer | question > answer ...
QA = """
{t}，{p1}和{p2}去{pl}{act}，回来时买了{it}。|{p1}和谁一起去{pl}？>{p2}|他们去{pl}做什么？>{act}|他们什么时候去的？>{t}|他们买了什么？>{it}|他们去了哪里？>{pl}
{p1}是一名{jb1}，他的妻子是一名{jb2}，两人住在{ct}。|{p1}做什么工作？>{jb1}|{p1}的妻子做什么工作？>{jb2}|他们住在哪里？>{ct}|谁是{jb1}？>{p1}
{p1}喜欢{hb1}，{p2}喜欢{hb2}，{p3}喜欢{hb3}。|谁喜欢{hb2}？>{p2}|{p1}喜欢什么？>{hb1}|{p3}喜欢什么？>{hb3}|谁喜欢{hb1}？>{p1}|谁喜欢{hb3}？>{p3}
通知：{ev}定于{ft}{clk}在{pl}举行，负责人是{p1}。|{ev}在哪里举行？>{pl}|{ev}什么时候举行？>{ft}{clk}|{ev}的负责人是谁？>{p1}|{ft}{clk}有什么活动？>{ev}
{it}放在{in1}，{fd}放在{in2}。|{fd}在哪里？>{in2}|{it}在哪里？>{in1}|{in1}放着什么？>{it}|什么放在{in2}？>{fd}
{p1}养了一只{an1}，名字叫{nm1}；{p2}养了一只{an2}，名字叫{nm2}。|{p1}养了什么？>{an1}|{p2}的{an2}叫什么名字？>{nm2}|{nm1}是谁养的？>{p1}|{p1}的{an1}叫什么？>{nm1}|谁养了{an2}？>{p2}
从{ct1}坐火车到{ct2}要{min}，票价{pr}。|票价是多少？>{pr}|从{ct1}到{ct2}要多长时间？>{min}|火车从哪里出发？>{ct1}|火车开往哪里？>{ct2}
因为{dis}，原定{ft1}的{ev}推迟到{ft2}。|{ev}为什么推迟？>因为{dis}|{ev}推迟到什么时候？>{ft2}|什么活动推迟了？>{ev}|{ev}原定什么时候举行？>{ft1}
{p1}{t}过生日，{k1}送了{it1}，{k2}送了{it2}。|谁送了{it1}？>{k1}|{k2}送了什么？>{it2}|谁过生日？>{p1}|{p1}什么时候过生日？>{t}
这家店的招牌菜是{fd1}，每份{lo1}；{fd2}也不错，每份{lo2}。|招牌菜是什么？>{fd1}|{fd1}每份多少钱？>{lo1}|{fd2}每份多少钱？>{lo2}
{pl}早上{hr1}开门，{wd}休息，门票{pr}。|{pl}几点开门？>早上{hr1}|{pl}星期几休息？>{wd}|门票多少钱？>{pr}
{p1}在{org}工作了{dur}，最近搬到了{ct}。|{p1}在哪里工作？>{org}|{p1}工作了多久？>{dur}|{p1}搬到了哪里？>{ct}|谁搬到了{ct}？>{p1}
我们班有{sm1}个学生，其中{sm2}个喜欢{sj}，班长叫{p}。|班里有多少个学生？>{sm1}个|多少个学生喜欢{sj}？>{sm2}个|班长叫什么名字？>{p}
{p1}最喜欢的季节是{se}，因为可以去{pl}{act}。|{p1}最喜欢哪个季节？>{se}|{p1}喜欢去哪里？>{pl}|{p1}去{pl}做什么？>{act}|谁最喜欢{se}？>{p1}
{k1}在{at1}找到了{it1}，原来是{p}忘在那里的。|谁找到了{it1}？>{k1}|{it1}在哪里找到的？>{at1}|{k1}找到了什么？>{it1}|{it1}是谁忘的？>{p}
晚饭后，{k1}在{at1}{hb1}，{k2}在{at2}{hb2}。|谁在{hb1}？>{k1}|{k2}在做什么？>{hb2}|{k1}在哪里？>{at1}|{k2}在哪里{hb2}？>{at2}
新来的{sj}老师姓{sn}，是{ct}人，平时喜欢{hb}。|新来的老师姓什么？>{sn}|老师是哪里人？>{ct}|老师平时喜欢什么？>{hb}|新来的老师教什么？>{sj}
{p1}每天早上{hr1}起床，先{hb}，再去{pl}，晚上{hr2}睡觉。|{p1}每天几点起床？>早上{hr1}|{p1}几点睡觉？>晚上{hr2}|{p1}起床后先做什么？>{hb}
比赛中{p1}得了第一名，{p2}得了第二名，{p3}得了第三名。|谁得了第一名？>{p1}|谁得了第二名？>{p2}|第三名是谁？>{p3}|{p2}得了第几名？>第二名
这块手表是{k1}送给{p1}的，{col}的，花了{pr}。|手表是谁送的？>{k1}|手表是什么颜色的？>{col}|手表花了多少钱？>{pr}|手表送给了谁？>{p1}
{p1}的车是{col1}的，{p2}的车是{col2}的。|{p1}的车是什么颜色？>{col1}|谁的车是{col2}的？>{p2}|{p2}的车是什么颜色？>{col2}
为了买{it1}，{p1}攒了{dur}的钱，一共{pr}。|{p1}攒钱想买什么？>{it1}|{p1}攒了多久？>{dur}|谁在攒钱？>{p1}|{p1}一共攒了多少钱？>{pr}
超市打折，{fr1}每斤{lo1}，{fr2}每斤{lo2}，{fr3}不打折。|{fr1}每斤多少钱？>{lo1}|{fr2}每斤多少钱？>{lo2}|什么不打折？>{fr3}|什么水果不打折？>{fr3}
{p1}把{it1}交给了{p2}，{p2}又把它送到了{pl}。|{p1}把{it1}交给了谁？>{p2}|{it1}送到了哪里？>{pl}|谁把{it1}交给了{p2}？>{p1}|{p1}交给{p2}什么东西？>{it1}
{p1}大学学的是{sj}，毕业后在{ct}当了一名{jb}。|{p1}大学学的是什么？>{sj}|{p1}毕业后做什么工作？>{jb}|{p1}在哪个城市工作？>{ct}|谁当了{jb}？>{p1}
{t}的{dis}把{in}的{it}弄坏了，幸好{p}没有受伤。|什么被弄坏了？>{it}|谁没有受伤？>{p}|{it}是被什么弄坏的？>{dis}
{p1}感冒了，{ft}的{ev}由{p2}替他参加。|谁感冒了？>{p1}|谁替{p1}参加？>{p2}|{p2}替{p1}参加什么？>{ev}|{p1}怎么了？>感冒了
工人们用了{dur}修好了{pj}，一共花了{big}万元，比计划提前了{sm1}天。|工人们修好了什么？>{pj}|修{pj}用了多长时间？>{dur}|比计划提前了多少天？>{sm1}天|修{pj}花了多少钱？>{big}万元
{p1}的书包里有{it1}、{it2}和一个{fr}。|{p1}的书包里有什么水果？>一个{fr}|谁的书包里有{it1}？>{p1}|书包里除了{it1}和一个{fr}还有什么？>{it2}
{org}在{rd1}，{pl}在{rd2}，走路要{min}。|{org}在哪条路上？>{rd1}|{pl}在哪里？>{rd2}|走路要多久？>{min}
{p1}的女儿今年{sm1}岁，成绩最好的是{sj1}，最差的是{sj2}。|女儿成绩最好的是什么？>{sj1}|{p1}的女儿今年多少岁？>{sm1}岁|最差的科目是什么？>{sj2}
{k1}做的{fd1}最好吃，{k2}做的{fd2}也不错，我最爱吃{fd3}。|谁做的{fd1}最好吃？>{k1}|{k2}做什么也不错？>{fd2}|我最爱吃什么？>{fd3}
{an}主要吃{fr}，一天要睡{sm}个小时，最怕{dis}。|{an}主要吃什么？>{fr}|{an}最怕什么？>{dis}|{an}一天睡多少个小时？>{sm}个小时|什么动物最怕{dis}？>{an}
展览从{ft}开始，持续{dur}，门票{pr}，地点在{pl}。|展览什么时候开始？>{ft}|展览持续多长时间？>{dur}|门票多少钱？>{pr}|展览在哪里？>{pl}
{p1}对{k}说，{ft}要带{it}去{pl}，别忘了。|{ft}要去哪里？>{pl}|{ft}要带什么？>{it}|谁提醒别忘了？>{p1}|{p1}对谁说的？>{k}
""".strip().splitlines()

# passage => summary; {nd} and {dd} are a closing detail of a news item or a diary entry.
SUMMARY = """
{t}，{org}举办了一场{ev}，{n}多名{kd}参加。{nd}=>{org}举办{ev}，{n}多名{kd}参加。
记者{t}从{org}了解到，那里新开了一个{pj}，每天开放到{clk}。{nd}=>{org}新开{pj}，每天开放到{clk}。
{ft}起，{org}将免费向{kd}开放，开放时间为每天{clk}以后。{nd}=>{org}{ft}起免费向{kd}开放。
{t}，{rd}因为{dis}交通中断。{jb}{p}连夜带人抢修，{dur}后恢复了通行。{nd}=>{rd}因{dis}交通中断，{dur}后恢复。
{t}的{dis}让{org}损失不小，所幸没有人员受伤。{nd}=>{org}遭遇{dis}，无人受伤。
{ct}市宣布，{ft}将新建{sm}座{pj}，总投资{big}万元。{nd}=>{ct}将新建{sm}座{pj}。
由于道路施工，{sm}路公交车从{ft}起改走{rd}，工程预计{dur}完成。{nd}=>因道路施工，{sm}路公交车{ft}起改走{rd}。
{t}，{p}在{pl}不慎落水，路过的{jb}{p2}马上跳下去救人。{nd}=>{jb}{p2}救起落水的{p}。
今年{org}的{cr}丰收了，总产量达到{big}吨，收入比去年增加了不少。{nd}=>{org}{cr}丰收，产量达{big}吨。
{t}，全市{ev}在{pl}举行，{big}名{kd}参加。经过激烈角逐，{p}获得了第一名。=>全市{ev}举行，{p}获得第一名。
{p}退休以后开始学{hb}，每天练习{min}。{t}，他的作品在{org}展出，受到称赞。=>{p}退休后学{hb}，作品在{org}展出。
{t}，{org}请来{jb}{p}给{kd}做讲座。{nd}=>{jb}{p}到{org}做讲座。
一位{kd}在{pl}丢了{it}。{jb}{p}发现以后，马上联系了警察，把东西还给了失主。=>{jb}{p}捡到{it}还给失主。
{org}的第一座{pj}{t}开放了，第一周就接待了{big}人。{nd}=>{org}第一座{pj}开放，首周接待{big}人。
为了方便{kd}，{org}从{ft}起延长开放时间，每天到{clk}才关门。{nd}=>{org}{ft}起延长开放到{clk}。
{t}，{ct}出现{dis}，{sm}所学校停课一天。{nd}=>{ct}出现{dis}，{sm}所学校停课。
研究人员调查了{big}名{kd}，发现经常{hb}的人更健康。{nd}=>调查发现经常{hb}的人更健康。
{t}，{ct}到{ct2}的高铁正式开通，全程只要{min}，票价{pr}。{nd}=>{ct}到{ct2}高铁开通，全程{min}。
{org}{t}发出通知，因为{dis}，原定{ft}的{ev}取消。{nd}=>因{dis}，{org}取消{ev}。
{t}，{org}的{kd}为山区学校捐款{big}元。{nd}=>{org}的{kd}为山区学校捐款{big}元。
{td}晚上，{org}的仓库起火，消防队{min}后扑灭了大火，没有人员受伤。{nd}=>{org}仓库起火，无人受伤。
一只{an}{t}跑进了{pl}，引得{kd}纷纷拍照。{jb}{p}把它送回了家。=>{an}跑进{pl}，{jb}{p}把它送回家。
今天我和{k}去{pl}{act}，路上还买了{it}。{dd}=>我和{k}去{pl}{act}。
{wd}，天气{wx}。我跟着{k}学{hb}，一开始总也学不好，练了{min}终于学会了。{dd}=>我跟{k}学会了{hb}。
今天是{k}的生日，我送了{it}，晚上全家一起吃了{fd}。{dd}=>我们给{k}过生日。
早上出门时天气{wx}，没想到中午突然遇到{dis}。{p}带我去{pl}躲了{min}。{dd}=>遇到{dis}，{p}带我去{pl}躲避。
我养的{an}{nm}昨天不见了，我找遍了所有地方，最后在{at}发现了它。{dd}=>我在{at}找到了走丢的{an}。
今天{sj}考试的成绩出来了，我考了{n}分，{p}表扬了我。{dd}=>我{sj}考了{n}分，受到{p}表扬。
{t}我去{ct}的{k}家住了{dur}，学会了{hb}，还认识了{p}。{dd}=>我在{ct}的{k}家住了{dur}。
{k}第一次用手机{act}，怎么也弄不好。我慢慢教，现在每天都用。{dd}=>我教会了{k}用手机。
今天我和{p}去{pl}看望{kd}，还带去了{it}。{dd}=>我和{p}去看望{kd}。
{td}晚上家里停电了，屋里一片漆黑，{k}给我们讲故事，一直讲了{min}。{dd}=>晚上停电，{k}给我们讲故事。
我把{it}忘在{pl}了，急得不得了。{p}帮我找了回来。{dd}=>{p}帮我找回了{it}。
{sj}课上，{p}带我们去{pl}{act}，同学们都抢着参加。{dd}=>{sj}课上{p}带我们去{pl}{act}。
今天我早上{hr}才起床，饭也没吃就往{pl}跑，差点迟到。{dd}=>我起床晚了，差点迟到。
{k}已经{dur}没有回家了，今天从{ct}回来，给我带了{it}。{dd}=>{k}从{ct}回来，给我带了{it}。
""".strip().splitlines()
NEWS_DETAILS = """
现场气氛十分热烈。|大家纷纷表示支持。|活动持续了{min9}。|负责人{p9}说，以后还会继续。|据介绍，准备工作用了{dur9}。|
居民{p9}说，这样方便多了。|不少{kd9}专程从{ct9}赶来。|相关工作正在进行。|{kd9}们都说很好。|更多消息请看通知。|
专家提醒大家注意安全。|许多人拍照留念。|这在当地还是第一次。|有关部门已经介入。|记者在现场看到了{p9}。|
""".replace("\n", "").split("|")
DIARY_DETAILS = """
我{feel}。|晚上我们吃了{fd9}。|回家后我写了这篇日记。|这一天过得真快。|我想以后要多帮助别人。|真希望明天也这样。|
{k9}说下次还要一起来。|我心里{feel}。|以后我要更加小心。|我永远忘不了这一天。|睡觉前我还在想这件事。|
""".replace("\n", "").split("|")

# Chinese | English; a slot without a form is the Chinese form.
TRANSLATION = """
{sp}喜欢{food}。|{sp.1} like {food.1}.
{st}喜欢{food}。|{st.1} likes {food.1}.
{sp}不喜欢{drink}。|{sp.1} don't like {drink.1}.
{st}不喜欢{drink}。|{st.1} doesn't like {drink.1}.
{s}正在{vp}。|{s.2} {vp.3}.
{s}正在{place}{vp}。|{s.2} {vp.3} in the {place.1}.
{sp}{freq}{vp}。|{sp.1} {vp.1} {freq.1}.
{st}{freq}{vp}。|{st.1} {vp.2} {freq.1}.
{s}{past}{vp.5}。|{s.1} {vp.4} {past.1}.
{s}{past}去了{place}。|{s.1} went to the {place.1} {past.1}.
{s}{past}买了一{thing.2}新{thing}。|{s.1} bought a new {thing.1} {past.1}.
{s}{fut}要去{city}。|{s.1} will go to {city.1} {fut.1}.
{s}{fut}要{vp}。|{s.1} will {vp.1} {fut.1}.
{sp}想{vp}。|{sp.1} want to {vp.1}.
{st}想{vp}。|{st.1} wants to {vp.1}.
{s}会{vp}。|{s.1} can {vp.1}.
你会{vp}吗？|Can you {vp.1}?
我可以{vp}吗？|Can I {vp.1}?
你喜欢{food}吗？|Do you like {food.1}?
你想喝{drink}吗？|Do you want to drink {drink.1}?
我想喝一杯{drink}。|I want to drink a cup of {drink.1}.
请给我一杯{drink}。|Please give me a cup of {drink.1}.
{loc}有{num}{small.2}{small}。|There are {num.1} {small.3} {loc.1}.
{loc}有一{animal.2}{animal}。|There is a {animal.1} {loc.1}.
{own}的{small}在{loc}。|{own.1} {small.1} is {loc.1}.
那{animal.2}{animal}在{loc}睡觉。|The {animal.1} is sleeping {loc.1}.
这{thing.2}{thing}很{adj}。|This {thing.1} is very {adj.1}.
那{thing.2}{thing}太{adj}了。|That {thing.1} is too {adj.1}.
{own}的{thing}是{col}的。|{own.1} {thing.1} is {col.1}.
这是{own}的{thing}。|This is {own.1} {thing.1}.
这{thing.2}{thing}是谁的？|Whose {thing.1} is this?
这{thing.2}{thing}多少钱？|How much is this {thing.1}?
你的{thing}在哪里？|Where is your {thing.1}?
{place}在哪里？|Where is the {place.1}?
{place}离这里远吗？|Is the {place.1} far from here?
最近的{place}在哪里？|Where is the nearest {place.1}?
{s}今天很{mood}。|{s.2} very {mood.1} today.
{st}很{trait}。|{st.2} very {trait.1}.
{st}是{job}。|{st.2} {job.1}.
{st}想当{job}。|{st.1} wants to be {job.1}.
{sp}住在{city}。|{sp.1} live in {city.1}.
{st}住在{city}。|{st.1} lives in {city.1}.
{st}在{place}工作。|{st.1} works in a {place.1}.
{st}来自{city}。|{st.2} from {city.1}.
{sp}有{num}{thing.2}{thing}。|{sp.1} have {num.1} {thing.3}.
{st}有一{thing.2}{col}的{thing}。|{st.1} has a {col.1} {thing.1}.
{st}没有{thing}。|{st.1} doesn't have a {thing.1}.
{st}比我{comp}。|{st.2} {comp.1} than me.
这{thing.2}{thing}比那{thing.2}{size}。|This {thing.1} is {size.1} than that one.
{city}的{sea}很{wea}。|The {sea.1} in {city.1} is very {wea.1}.
今天{city}很{wea}。|It is very {wea.1} in {city.1} today.
天气{fut}会很{wea}。|The weather will be very {wea.1} {fut.1}.
今天是{day}。|Today is {day.1}.
现在是{hour}点。|It is {hour.1} o'clock now.
{place}{hour}点开门。|The {place.1} opens at {hour.1} o'clock.
我们{day}有{lang}课。|We have a {lang.1} class on {day.1}.
{sp}坐{veh}去{place}。|{sp.1} go to the {place.1} {veh.1}.
{st}坐{veh}去{place}。|{st.1} goes to the {place.1} {veh.1}.
我们{fut}去{place}吧。|Let's go to the {place.1} {fut.1}.
请不要在{place}{vp}。|Please don't {vp.1} in the {place.1}.
请帮我{vp}。|Please help me {vp.1}.
你什么时候{vp}？|When do you {vp.1}?
你为什么{vp}？|Why do you {vp.1}?
{sp}从来没去过{city}。|{sp.1} have never been to {city.1}.
{st}从来没去过{city}。|{st.1} has never been to {city.1}.
{own}的{thing}不见了。|{own.1} {thing.1} is missing.
我忘了带{thing}。|I forgot to bring my {thing.1}.
谢谢你的{thing}。|Thank you for your {thing.1}.
""".strip().splitlines()
