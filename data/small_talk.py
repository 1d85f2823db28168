"""Small talk and everyday sentences for the pre-training corpus.

The chats show the model the turns of a conversation, but nothing of the tasks that it is later fine-tuned on.
"""

# question | reply; {x} repeats a word of the question.
CHATS = """
你好|你好！很高兴见到你。
你好呀|你好呀，今天过得怎么样？
早上好|早上好！祝你有美好的一天。
晚上好|晚上好！今天辛苦了。
晚安|晚安，做个好梦。
再见|再见，下次再聊。
谢谢你|不客气，很高兴能帮到你。
非常感谢|不用谢，这是我应该做的。
你是谁？|我是一个小小的语言模型。
你叫什么名字？|我没有名字，你可以叫我小助手。
你多大了？|我还很小，只有一百多万个参数。
你会做什么？|我可以陪你聊聊天。
你吃饭了吗？|我不用吃饭，谢谢关心。
今天天气怎么样？|我看不到窗外，你那里天气好吗？
我今天很累|辛苦了，早点休息吧。
我有点难过|别难过，一切都会好起来的。
我很高兴|真好，我也为你高兴！
我考试考砸了|没关系，下次继续努力。
我要去上班了|路上小心，工作顺利。
我要去上学了|好好学习，天天向上。
我饿了|去吃点好吃的吧。
我睡不着|可以听听轻音乐，放松一下。
祝你生日快乐|谢谢你的祝福！
新年快乐|新年快乐，万事如意！
你喜欢音乐吗？|我喜欢听你说说你喜欢的音乐。
你有朋友吗？|你就是我的朋友。
你能听懂我说话吗？|能听懂一点点。
对不起|没关系，不用放在心上。
我回来了|欢迎回来！
聊点什么呢？|聊聊你今天做了什么吧。
hello|Hello! Nice to meet you.
hi|Hi! How are you today?
good morning|Good morning! Have a nice day.
good night|Good night, sleep well.
how are you?|I am fine, thank you.
thank you|You are welcome.
who are you?|I am a small language model.
bye|Bye! See you next time.
我叫{x}|你好，{x}！很高兴认识你。
我是{x}|{x}，你好！
{x}在吗？|{x}现在不在。
我喜欢{y}|{y}很有意思，我也想试试。
周末我想{y}|去{y}是个好主意。
我住在{z}|{z}是个好地方。
我想去{z}|祝你在{z}玩得开心。
""".strip().splitlines()

EVERYDAY = """
早上好。|Good morning.
晚安。|Good night.
你好吗？|How are you?
我很好，谢谢。|I am fine, thank you.
很高兴见到你。|Nice to meet you.
对不起。|I am sorry.
没关系。|It doesn't matter.
别着急。|Take your time.
请进。|Please come in.
请坐。|Please sit down.
请开门。|Please open the door.
请关上窗户。|Please close the window.
请说慢一点。|Please speak slowly.
祝你好运。|Good luck.
生日快乐！|Happy birthday!
新年快乐！|Happy New Year!
现在几点了？|What time is it now?
你叫什么名字？|What is your name?
你多大了？|How old are you?
你从哪里来？|Where are you from?
你住在哪里？|Where do you live?
你在做什么？|What are you doing?
你想喝什么？|What do you want to drink?
你想买什么？|What do you want to buy?
你喜欢什么颜色？|What color do you like?
这是什么？|What is this?
那是什么？|What is that?
他是谁？|Who is he?
她什么时候来？|When will she come?
我不知道。|I don't know.
我明白了。|I understand.
我同意。|I agree.
我迷路了。|I am lost.
我头疼。|I have a headache.
我感冒了。|I have a cold.
我需要帮助。|I need help.
我们走吧。|Let's go.
等一下。|Wait a moment.
小心！|Be careful!
下雨了。|It is raining.
下雪了。|It is snowing.
外面很冷。|It is cold outside.
太阳出来了。|The sun is out.
昨天下雨了。|It rained yesterday.
昨晚我没睡好。|I didn't sleep well last night.
他昨天没来上学。|He didn't come to school yesterday.
她唱歌唱得很好。|She sings very well.
他跑得很快。|He runs very fast.
他走得太慢了。|He walks too slowly.
我可以用你的电话吗？|Can I use your phone?
你能告诉我吗？|Can you tell me?
你会说英语吗？|Can you speak English?
你昨天去哪里了？|Where did you go yesterday?
你为什么迟到？|Why are you late?
不要担心。|Don't worry.
不要忘记。|Don't forget.
别说话。|Don't talk.
他们到家了。|They got home.
火车晚点了。|The train is late.
商店关门了。|The shop is closed.
电影很有意思。|The movie is very interesting.
这个问题很难。|This question is very difficult.
时间不早了。|It is getting late.
我弟弟在睡觉。|My brother is sleeping.
鸟儿在唱歌。|The birds are singing.
花儿很漂亮。|The flowers are very beautiful.
水很干净。|The water is very clean.
树上有很多苹果。|There are many apples in the tree.
我每天走路上学。|I walk to school every day.
她在等公交车。|She is waiting for the bus.
谢谢你的帮忙。|Thank you for helping me.
""".strip().splitlines()
